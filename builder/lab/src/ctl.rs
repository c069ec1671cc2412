//! `lab ctl`: asks a node's supervisor through the machine's operator port, in dyadctl's words.

use clap::Parser;
use dyad_api::operator::{Call, Exec, Logs, ServiceName};
use serde_json::Value;

use crate::commands::{pretty, print};
use crate::control::{Request, ask};
use crate::error::{Result, refuse};
use crate::state::StateDir;

/// What can be asked.
#[derive(Debug, Parser)]
#[command(name = "dyad lab ctl NODE --", no_binary_name = true, disable_version_flag = true)]
enum Ask {
    /// How the node is
    Status {
        /// As JSON (the only form here)
        #[arg(long)]
        json: bool,
    },
    /// All services
    Services,
    /// How to reach PostgreSQL, with passwords
    Credentials,
    /// Start a service
    Start { name: String },
    /// Stop a service
    Stop { name: String },
    /// Restart a service
    Restart { name: String },
    /// The end of the journal
    Logs {
        /// Of this service only
        service: Option<String>,
        /// How many lines
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
    },
    /// Shut down and power off
    Poweroff,
    /// Shut down and restart
    Reboot,
    /// Run a program as root (images with a test agent only)
    Exec {
        /// Print how it ended and what it wrote as one JSON object, and succeed however it ended
        #[arg(long)]
        json: bool,
        /// Milliseconds until it is killed
        #[arg(long, default_value_t = 60_000)]
        deadline_ms: u32,
        /// Absolute path and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
}

/// Asks and prints the answer. A program run by `exec` that fails makes the command fail.
pub(crate) fn run(state: &StateDir, node: &str, args: &[String]) -> Result<()> {
    let (call, shape) = match parse(args) {
        Ok(parsed) => parsed,
        Err(e) => e.exit(),
    };
    let answer = ask(state, &Request::Operator { node: node.into(), call })?.value;
    match (shape, answer.as_array()) {
        (Shape::Exec, _) => show_exec(&answer),
        (Shape::Logs, Some(lines)) => print(&lines.iter().map(log_line).collect::<String>()),
        (Shape::Logs | Shape::Json, _) => print(&pretty(&answer)),
    }
}

/// How an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Logs,
    Exec,
}

fn parse(args: &[String]) -> std::result::Result<(Call, Shape), clap::Error> {
    let ask = Ask::try_parse_from(args)?;
    let shape = match &ask {
        Ask::Logs { .. } => Shape::Logs,
        Ask::Exec { json: false, .. } => Shape::Exec,
        _ => Shape::Json,
    };
    Ok((into_call(ask), shape))
}

fn into_call(ask: Ask) -> Call {
    match ask {
        Ask::Status { json: _ } => Call::Status,
        Ask::Services => Call::Services,
        Ask::Credentials => Call::Credentials,
        Ask::Start { name } => Call::Start(ServiceName { name }),
        Ask::Stop { name } => Call::Stop(ServiceName { name }),
        Ask::Restart { name } => Call::Restart(ServiceName { name }),
        Ask::Logs { service, lines } => Call::Logs(Logs { lines, service }),
        Ask::Poweroff => Call::PowerOff,
        Ask::Reboot => Call::Reboot,
        Ask::Exec { deadline_ms, argv, json: _ } => Call::Exec(Exec { argv, deadline_ms }),
    }
}

fn log_line(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    format!("<{}> {}: {}\n", line["priority"], text("source"), text("message"))
}

fn show_exec(answer: &Value) -> Result<()> {
    print(answer["stdout"].as_str().unwrap_or_default())?;
    eprint!("{}", answer["stderr"].as_str().unwrap_or_default());
    match answer["status"].as_i64() {
        Some(0) => Ok(()),
        _ => refuse(format!("the program ended: {}", answer["end"].as_str().unwrap_or("unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_calls() {
        let call = |words: &str| parse(&words.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(call("status --json").unwrap(), (Call::Status, Shape::Json));
        assert_eq!(
            call("logs postgresql -n 5").unwrap(),
            (Call::Logs(Logs { lines: 5, service: Some("postgresql".into()) }), Shape::Logs)
        );
        let list = Call::Exec(Exec { argv: vec!["/bin/ls".into(), "-l".into()], deadline_ms: 60_000 });
        assert_eq!(call("exec -- /bin/ls -l").unwrap(), (list.clone(), Shape::Exec));
        assert_eq!(call("exec --json -- /bin/ls -l").unwrap(), (list, Shape::Json));
        assert!(call("dance").unwrap_err().to_string().contains("dance"));
    }
}
