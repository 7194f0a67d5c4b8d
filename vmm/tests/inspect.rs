//! What `replay` shows of a run in which a device goes through the SMMU: the trace's arrows, watchpoints that walks and DMA set
//! off, memory as the device sees it. The guest is bare metal.

mod common;

use std::path::PathBuf;

use common::a64::Program;
use common::rsp::Server;
use common::{smmulab, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

const MARK: u64 = 0x0c00_0008;
const SMMU: u64 = 0x0905_0000;
/// Frame 0 of the test engine in the device tree, StreamID 0x10000.
const ENGINE: u64 = 0x0d00_0000;
const CMDQ: u64 = 0x4180_0000;
const EVENTQ: u64 = 0x4181_0000;
const CD: u64 = 0x4182_0000;
/// Tables of levels 0 to 3.
const TABLES: u64 = 0x4183_0000;
const LEAF: u64 = TABLES + 0x3000;
const STRTAB: u64 = 0x4200_0000;
const STE: u64 = STRTAB + 64 * 0x1_0000;
const PAGE: u64 = 0x4190_0000;
const IOVA: u64 = 0x1000_0000;
/// AF, inner shareable, unprivileged, nG, page.
const RW: u64 = 1 << 10 | 3 << 8 | 1 << 6 | 1 << 11 | 3;
/// The first bytes of the page.
const CONTENT: u64 = 0x1122_3344_5566_7788;

/// The engine sums 64 bytes of the page.
fn dma(p: &mut Program, name: &str) {
    p.poke(8, ENGINE + 0x28, IOVA).poke(8, ENGINE + 0x30, IOVA + 63).poke(8, ENGINE + 0x38, 1);
    p.poke(4, ENGINE + 0x20, 0xff00ff).poke(4, ENGINE, 4);
    p.label(name).li(16, ENGINE).load(4, 17, 16).subi(17, 17, 4).cbz(17, name);
}

/// Maps a page, lets the engine read it, unmaps it, lets the engine read it once more, and only then invalidates.
fn guest() -> Program {
    let mut p = Program::new();
    p.poke(8, STE + 8, 1 << 44).poke(8, STE, 1 | 5 << 1 | CD);
    p.poke(8, CD + 8, TABLES).poke(8, CD + 24, 0xff);
    p.poke(8, CD, 16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 7 << 48);
    p.poke(8, TABLES, TABLES + 0x1003).poke(8, TABLES + 0x1000, TABLES + 0x2003);
    p.poke(8, TABLES + 0x2000 + 8 * (IOVA >> 21), TABLES + 0x3003);
    p.poke(8, SMMU + 0x90, CMDQ | 6).poke(8, SMMU + 0xa0, EVENTQ | 4);
    p.poke(8, SMMU + 0x80, STRTAB).poke(4, SMMU + 0x88, 17).poke(4, SMMU + 0x20, 0xd);
    p.poke(8, PAGE, CONTENT).poke(8, LEAF, PAGE | RW);
    p.poke(4, MARK, 1);
    dma(&mut p, "in time");
    p.poke(8, LEAF, 0);
    dma(&mut p, "too late");
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
