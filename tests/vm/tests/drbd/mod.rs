//! The scripts of tests/sim/calibration/drbd.txt on two machines with the kernel's own DRBD.

use dyad_sim::calibrate::{run, scripts};
use dyad_sim::volume::{EXPECT, SCRIPTS};
use dyad_vm_tests::Lab;

const NODES: [&str; 2] = ["node-a", "node-b"];
const GUEST: &str = include_str!("guest.sh");
/// Timeouts near the product's, with more time for a machine that is emulated.
const RESOURCE: &str = "global { usage-count no; }
resource cal {
  net {
    protocol C; timeout 25; ping-int 3; ping-timeout 20; connect-int 3;
    after-sb-0pri disconnect; after-sb-1pri disconnect; after-sb-2pri disconnect;
  }
  disk { fencing resource-and-stonith; }
  device minor 7;
  disk /dev/mapper/dyad-cal;
  meta-disk internal;
  on node-a { address 10.77.1.11:7797; }
  on node-b { address 10.77.1.12:7797; }
}
";

/// Runs all scripts and compares; what DRBD did.
pub(crate) fn calibrate(lab: &Lab) -> String {
    let pair = Pair { lab };
    pair.each(&["install", RESOURCE]);
    let seen: Vec<String> = scripts(SCRIPTS)
        .iter()
        .map(|script| {
            pair.each(&["new"]);
            pair.guest(0, &["begin"]);
            let seen = run(script, |line| pair.operate(line));
            pair.each(&["end"]);
            seen
        })
        .collect();
    pair.each(&["remove"]);
    let seen = seen.join("\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(EXPECT, &seen).expect("the record can be written");
    }
    assert_eq!(seen, std::fs::read_to_string(EXPECT).expect("the record can be read"));
    seen
}

struct Pair<'a> {
    lab: &'a Lab,
}

impl Pair<'_> {
    /// An operation of `guest.sh`, and the line that it printed.
    fn guest(&self, node: usize, words: &[&str]) -> String {
        let script = format!("export PATH=/usr/sbin:/usr/bin\n{GUEST}");
        let mut argv = vec!["/bin/sh", "-c", &script, "guest.sh"];
        argv.extend_from_slice(words);
        self.lab.guest_ok(NODES[node], &argv).trim().to_owned()
    }

    fn each(&self, words: &[&str]) {
        for node in [0, 1] {
            self.guest(node, words);
        }
    }

    fn operate(&self, line: &str) -> String {
        let mut words: Vec<&str> = line.split(' ').collect();
        let own = usize::from(words.remove(1) == "s");
        let mut said = self.guest(own, &words);
        match words[0] {
            "cut" => said = self.guest(1 - own, &["alone"]),
            "discard" => said = self.guest(1 - own, &["connect"]),
            _ => {}
        }
        // A machine whose peer stays apart only sees that nobody answers.
        if said.is_empty() && matches!(words[0], "mend" | "return" | "discard") {
            said = self.guest(1 - own, &["link"]);
        }
        match words[0] {
            "disk" => said,
            _ if said.is_empty() => "done".to_owned(),
            _ => said,
        }
    }
}
