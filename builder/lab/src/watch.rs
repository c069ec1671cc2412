//! `lab watch`: one screen, drawn anew every second from the same object that `status --json` prints.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock;
use crate::error::{Doing, Result};
use crate::state::StateDir;
use crate::status;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Widest line of the explanation.
const WIDTH: usize = 78;

/// Shows the lab until interrupted; once, when nobody looks at a terminal.
pub(crate) fn run(state: &StateDir) -> Result<()> {
    let mut out = std::io::stdout();
    let forever = out.is_terminal();
    loop {
        let screen = draw(&json!(status::look(state)?), forever);
        let clear = if forever { CLEAR } else { "" };
        write!(out, "{clear}{screen}").and_then(|()| out.flush()).doing("write to standard output")?;
        if !forever {
            return Ok(());
        }
        clock::pause(EVERY);
    }
}

/// What a level means, for somebody who sees it for the first time.
fn meaning(protection: &str) -> (&'static str, &'static str) {
    const RED: &str = "31";
    const YELLOW: &str = "33";
    const GREEN: &str = "32";
    match protection {
        "PROTECTED" => (GREEN, "Losing any one node now loses nothing, and nobody has to do anything."),
        "SYNCED" => (YELLOW, "Losing any one node now loses no data, but a person must say who goes on."),
        "EXPOSED" => (YELLOW, "Losing a certain node now loses data or the service."),
        "SINGLE" => (YELLOW, "One node by design: losing it loses the service."),
        _ => (RED, "Nobody can use the database now."),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn draw(status: &Value, colours: bool) -> String {
    let paint = |code: &str, words: &str| match colours {
        true => format!("\x1b[{code}m{words}\x1b[0m"),
        false => words.to_owned(),
    };
    let level = text(status, "protection");
    let (colour, means) = meaning(level);
    let mut screen = format!("{}  {means}\n\n", paint(&format!("1;{colour}"), level));
    screen += &format!("{:10} {:10} {:10} {:22} CANNOT REACH\n", "MEMBER", "POWER", "ROLE", "DATABASE");
    let members = list(status, "nodes").map(|node| (text(node, "name"), node, database(node)));
    let witness = status.get("witness").map(|w| ("witness", w, String::new()));
    for (name, member, database) in members.chain(witness) {
        let power = text(member, "power");
        let code = if power == "on" { "32" } else { "31" };
        let role = member["role"].as_str().unwrap_or("third vote");
        let cut: Vec<_> =
            list(status, "cuts").filter(|c| text(c, "from") == name).map(|c| text(c, "to")).collect();
        let row = format!(
            "{name:10} {} {role:10} {database:22} {}",
            paint(code, &format!("{power:10}")),
            cut.join(", ")
        );
        screen += &format!("{}\n", row.trim_end());
    }
    for (name, node) in list(status, "nodes").map(|node| (text(node, "name"), node)) {
        for cable in list(node, "cables") {
            screen += &format!("cable {} of {name} is {}\n", text(cable, "nic"), text(cable, "cable"));
        }
    }
    screen += "\n";
    for vip in list(status, "vips") {
        let holder = vip["holder"].as_str().unwrap_or("nobody");
        screen += &format!("address {} is answered by {holder}\n", text(vip, "address"));
    }
    screen += &wrap(text(status, "reason"));
    screen += "\nTry: dyad lab kill node-a | start node-a | pause node-a | cut node-a node-b | heal | psql\n";
    screen
}

fn database(node: &Value) -> String {
    let lag = match node["lag_bytes"].as_u64() {
        Some(bytes @ 1..) => format!(", {bytes} B behind"),
        Some(0) | None => String::new(),
    };
    match (node["up"].as_bool().unwrap_or(false), text(node, "power"), text(node, "phase")) {
        (true, ..) => format!("answers{lag}"),
        (false, "on", "") => "starts".into(),
        (false, "on", phase) => format!("starts ({phase})"),
        (false, ..) => "-".into(),
    }
}

/// Lines of at most [`WIDTH`] characters, broken at blanks.
fn wrap(words: &str) -> String {
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + word.chars().count() >= WIDTH {
            lines.push(word.to_owned());
        } else {
            let blank = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{blank}{word}");
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screen_says_what_is_cut_and_what_a_loss_would_cost() {
        let status = json!({
            "protection": "EXPOSED", "reason": "node-a: not paired ".repeat(9), "resources": [],
            "nodes": [
                {"name": "node-a", "role": "primary", "up": true, "lag_bytes": 0, "power": "on", "phase": "init",
                 "cables": [{"nic": "repl0", "cable": "silent"}]},
                {"name": "node-b", "role": "none", "up": false, "lag_bytes": null, "power": "off", "phase": ""},
            ],
            "witness": {"power": "paused"}, "cuts": [{"from": "node-a", "to": "node-b"}],
            "vips": [{"address": "10.77.0.100", "holder": null}],
        });
        let screen = draw(&status, false);
        let lines: Vec<_> = screen.lines().collect();
        assert_eq!(lines[0], "EXPOSED  Losing a certain node now loses data or the service.");
        assert_eq!(lines[2], "MEMBER     POWER      ROLE       DATABASE               CANNOT REACH");
        assert_eq!(lines[3], "node-a     on         primary    answers                node-b");
        assert_eq!(lines[4], "node-b     off        none       -");
        assert_eq!(lines[5], "witness    paused     third vote");
        assert_eq!(lines[6], "cable repl0 of node-a is silent");
        assert_eq!(lines[8], "address 10.77.0.100 is answered by nobody");
        assert!(lines.iter().all(|line| line.len() <= 100) && lines.len() <= 24, "{screen}");
        assert!(draw(&status, true).starts_with("\x1b[1;33mEXPOSED\x1b[0m"));
    }
}
