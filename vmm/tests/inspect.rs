//! What `replay` shows of a run in which a device goes through the SMMU: the trace's arrows, watchpoints that walks and DMA set
//! off, memory as the device sees it. The guest is bare metal.

mod common;

use std::path::PathBuf;

use common::a64::Program;
use common::rsp::Server;
use common::smmu::{CMDQ, IOVA, LEAF, MARK, PAGE, RW, SMMU, dma, set_up};
use common::{smmulab, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// The first bytes of the page.
const CONTENT: u64 = 0x1122_3344_5566_7788;

/// Maps a page, lets the engine read it, unmaps it, lets the engine read it once more, and only then invalidates.
fn guest() -> Program {
    let mut p = Program::new();
    set_up(&mut p);
    p.poke(8, PAGE, CONTENT).poke(8, LEAF, PAGE | RW);
    p.poke(4, MARK, 1);
    dma(&mut p, "in time", IOVA);
    p.poke(8, LEAF, 0);
    dma(&mut p, "too late", IOVA);
    p.poke(8, CMDQ, 0x12 | 7 << 48).poke(8, CMDQ + 8, IOVA | 1);
    p.poke(8, CMDQ + 16, 0x46).poke(8, CMDQ + 24, 0).poke(4, SMMU + 0x98, 2);
    p.label("commands").li(16, SMMU + 0x9c).load(4, 17, 16).subi(17, 17, 2).cbnz(17, "commands");
    p.poke(4, MARK, 4).label("stay").b("stay");
    p
}

/// Races it, which fails at once.
fn record() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("Image"), guest().image()).unwrap();
    let scenario = format!(
        "about = 'An invalidation that comes late'\nlimit = '1ms'\n\
         run = ['--kernel', '{}', '--mem', '64M', '--device', 'platform-engine', '--smmu', 'preset=full']\n",
        path("Image").display()
    );
    std::fs::write(path("late.toml"), scenario).unwrap();
    let found = smmulab()
        .args(["race", "--policy", "fixed", "--out"])
        .args([path("races"), path("late.toml")])
        .output()
        .unwrap();
    assert_eq!(found.status.code(), Some(1), "{}{}", stdout(&found), stderr(&found));
    let record = path("races/race-1.json");
    (dir, record)
}

#[test]
fn a_trace_tells_of_the_unmap_and_the_access_that_came_behind_it() {
    let (dir, record) = record();
    let file = dir.path().join("trace.json");
    let again = smmulab().arg("replay").arg(record).arg("--trace").arg(&file).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    let trace: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name: &str| {
        events.iter().filter(|e| e["name"].as_str().unwrap().starts_with(name)).collect::<Vec<_>>()
    };
    let (unmap, tlbi, sync) = (named("unmaps 0x41900000"), named("CMD_TLBI_NH_VA"), named("CMD_SYNC"));
    assert_eq!((unmap.len(), tlbi.len(), sync.len()), (1, 1, 1));
    assert!(named("descriptor").len() >= 4 && named("STE or CD").len() >= 2, "the walk");
    let beats = named("reads 64 bytes at 0x41900000");
    assert_eq!(beats.len(), 2, "before the unmap and, without an invalidation, behind it");
    let way = named("unmap to sync")
        .iter()
        .map(|e| (&e["ph"], &e["ts"]))
        .map(|(a, b)| (a.clone(), b.clone()))
        .collect::<Vec<_>>();
    let stop = |phase: &str, event: &Value| (Value::from(phase), event["ts"].clone());
    assert_eq!(way, [stop("s", unmap[0]), stop("t", tlbi[0]), stop("f", sync[0])]);
    let raced = named("the DMA that raced");
    assert_eq!(raced.iter().map(|e| &e["ts"]).collect::<Vec<_>>(), [&unmap[0]["ts"], &beats[1]["ts"]]);
}

#[test]
fn walks_and_beats_set_off_watchpoints() {
    let (_dir, record) = record();
    let (_server, mut gdb) = Server::start(&record, &[]);
    gdb.ask("qSupported:swbreak+;multiprocess+");
    let shown = gdb.monitor("iova 0x10000 0x10000000 8");
    assert!(shown.contains("0x10000000 is at physical address 0x41900000"), "{shown}");
    assert!(shown.contains("88 77 66 55 44 33 22 11"), "{shown}");
    assert!(gdb.monitor("iova 0x10000 0x20000000").contains("abort"), "nothing is mapped there");

    assert_eq!(gdb.ask(&format!("Z3,{LEAF:x},8")), "OK");
    assert!(gdb.ask("c").contains(&format!("rwatch:{LEAF:x}")));
    let who = gdb.monitor("where");
    assert!(who.contains("engine.0.1 read 8 bytes at physical address 0x41833000"), "the walk: {who}");
    assert_eq!(gdb.ask(&format!("z3,{LEAF:x},8")), "OK");
    assert_eq!(gdb.ask(&format!("Z3,{PAGE:x},8")), "OK");
    assert!(gdb.ask("c").contains(&format!("rwatch:{PAGE:x}")));
    let who = gdb.monitor("where");
    assert!(who.contains("engine.0.1 read 64 bytes"), "the beat: {who}");
    // The leaf is gone, and the SMMU still has the old translation: so has a device that goes through it.
    assert_eq!(gdb.ask(&format!("Z2,{LEAF:x},8")), "OK");
    assert!(gdb.ask("c").contains(&format!("watch:{LEAF:x}")), "the unmap");
    assert!(gdb.monitor("iova 0x10000 0x10000000 8").contains("0x41900000"));
    // At the end it has not.
    assert_eq!(gdb.ask(&format!("z3,{PAGE:x},8")), "OK");
    assert!(gdb.ask("c").contains("replaylog:end"));
    assert!(gdb.monitor("iova 0x10000 0x10000000 8").contains("abort"));
}
