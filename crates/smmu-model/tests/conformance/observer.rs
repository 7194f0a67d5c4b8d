//! Whoever watches sees what happens, and changes nothing.

use std::sync::{Arc, Mutex};

use smmu_model::spec::command::{Command, Opcode};
use smmu_model::spec::event::{Event, EventCode};
use smmu_model::{AccessKind, Observer, Transaction};

use crate::lab::*;

#[derive(Default)]
struct Log {
    commands: Vec<Option<Opcode>>,
    events: Vec<EventCode>,
}

struct Watch(Arc<Mutex<Log>>);

impl Observer for Watch {
    fn command(&mut self, command: &Command) {
        self.0.lock().unwrap().commands.push(command.opcode());
    }

    fn event(&mut self, event: &Event) {
        self.0.lock().unwrap().events.push(event.code());
    }
}

#[test]
fn sees_commands_and_records() {
    let log = Arc::new(Mutex::new(Log::default()));
    let run = |watched: bool| {
        let mut lab = Lab::new(linux());
        if watched {
            lab.smmu.observe(Box::new(Watch(log.clone())));
        }
        lab.dma(Transaction::new(3, 0, AccessKind::Read));
        lab.command(CFGI_ALL);
        lab.push([0, 0]);
        lab.run_commands();
        serde_json::to_string(&lab.smmu).unwrap()
    };
    assert_eq!(run(true), run(false), "an observer is no part of the state");
    let log = log.lock().unwrap();
    assert_eq!(log.commands, [Some(Opcode::CfgiSteRange), Some(Opcode::Sync)], "not the illegal one");
    assert_eq!(log.events, [EventCode::CBadSte]);
}
