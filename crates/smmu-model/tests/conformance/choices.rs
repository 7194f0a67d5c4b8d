//! Where the architecture leaves an implementation a choice, each way of it; and VMID wildcards.

use pgtable::{Builder, descriptor as d};
use smmu_model::spec::registers::{self as r, gerror};
use smmu_model::{AccessKind, Config, Transaction};

use crate::lab::*;

/// MEV in word 1 of an STE.
const MEV: u64 = 1 << 19;
/// nT in a block.
const NT: u64 = 1 << 16;

/// 7.3.1: events that differ in the offset within the page alone are merged, with STE.MEV, and while the first waits.
#[test]
fn merging() {
    for (merge, mev, records) in [(true, MEV, 2), (true, 0, 4), (false, MEV, 4)] {
        let (mut lab, _) = Lab::stage1(Config { merge, ..linux() });
        let mut ste = ste_stage1(CDS);
        ste[1] |= mev;
        lab.ste(SID, ste);
        for address in [0x1000, 0x1008, 0x2000, 0x1ff8] {
            assert_eq!(lab.read(address), End::Abort);
        }
        assert_eq!(lab.events().len(), records, "merge {merge}, MEV {mev:#x}");
        lab.read(0x1010);
        assert_eq!(lab.events().len(), 1, "what is written is not merged with");
    }
}

/// 7.3.1: reads and writes are different events; of events before the STE is known, MEV is not asked.
#[test]
fn merging_is_exact() {
    let (mut lab, _) = Lab::stage1(Config { merge: true, ..linux() });
    let mut ste = ste_stage1(CDS);
    ste[1] |= MEV;
    lab.ste(SID, ste);
    lab.read(0x1000);
    lab.write(0x1000);
    assert_eq!(lab.events().len(), 2);
    lab.ste(SID + 1, [0; 4]);
    for _ in 0..3 {
        lab.dma(Transaction::new(SID + 1, 0x1000, AccessKind::Read));
    }
    assert_eq!(code(lab.event()), 0x04);
    assert_eq!(lab.smmu.stats().events_merged, 2);
}

/// A page of a 2 MiB range is cached; then the range becomes a block, with `hint` set, and another page of it is used.
fn resized(config: Config, hint: u64) -> (Lab, Builder) {
    let (mut lab, mut tables) = Lab::stage1(config);
    lab.map(&mut tables, 0x20_0000, 0x8020_0000, 0x2000, RW);
    assert_eq!(lab.read(0x20_0000), End::To(0x8020_0000));
    let at = tables.entry(&mut Words(&lab.ram), 2, 0x20_0000).unwrap();
    lab.ram.set(at, 0x8020_0000 | RW | hint | d::VALID);
    assert_eq!(lab.read(0x20_1000), End::To(0x8020_1000));
    (lab, tables)
}

/// 3.21.1: without break-before-make the entries of both sizes may conflict; by default the smaller one counts.
#[test]
fn tlb_conflicts() {
    for bbml in [0, 1] {
        let (mut lab, _) = resized(Config { tlb_conflict: true, bbml, ..linux() }, 0);
        assert_eq!(lab.read(0x20_0008), End::Abort, "BBML {bbml}");
        let event = lab.event();
        assert_eq!((event[0], event[2]), (0x20 | u64::from(SID) << 32, 0x20_0008));
        assert_eq!(event[1], 1 << 35, "a read, at stage 1, no stall");
        assert_eq!(lab.read(0x20_1000), End::To(0x8020_1000), "only one entry for this page");
        lab.command(tlbi_va(1, 0x20_0000));
        assert_eq!(lab.read(0x20_0008), End::To(0x8020_0008), "both are gone");
    }
    for bbml in [0, 2] {
        let (mut lab, _) = resized(Config { bbml, ..linux() }, 0);
        assert_eq!(lab.read(0x20_0008), End::To(0x8020_0008));
    }
    assert!(Config { tlb_conflict: true, bbml: 2, ..linux() }.validate().is_err());
}

/// 3.21.1.2: with BBML 1 a block with nT is translated by and does not conflict; with others nT means nothing.
#[test]
fn not_cached() {
    let (mut lab, _) = resized(Config { tlb_conflict: true, bbml: 1, ..linux() }, NT);
    assert_eq!(lab.read(0x20_0008), End::To(0x8020_0008));
    assert_ne!(lab.fetches(|lab| lab.read(0x20_1000)).0, 0);
    let (mut lab, _) = resized(Config { bbml: 2, ..linux() }, NT);
    assert_eq!(lab.fetches(|lab| lab.read(0x20_1000)).0, 0);
}

/// 3.21.1.2: with BBML 1 a change of the Contiguous bit does not conflict; without, it may.
#[test]
fn contiguous_changes() {
    for (bbml, end) in [(1, End::To(0x8000_0008)), (0, End::Abort)] {
        let (mut lab, mut tables) = Lab::stage1(Config { tlb_conflict: true, bbml, ..linux() });
        lab.map(&mut tables, 0, 0x8000_0000, 0x1_0000, RW);
        lab.read(0);
        for n in 0..16 {
            let at = tables.entry(&mut Words(&lab.ram), 3, n << 12).unwrap();
            let page = lab.ram.word(at);
            lab.ram.set(at, page | d::CONTIGUOUS);
        }
        lab.read(0x1000);
        assert_eq!(lab.read(8), end, "BBML {bbml}");
    }
}

/// 4.1.5: reserved fields are ignored, or make the command illegal.
#[test]
fn reserved_fields() {
    let commands: [[u64; 2]; 7] = [
        [0x10 | 1 << 8, 0],
        [0x11 | 1 << 12, 0],
        [0x12, 1 << 1],
        [0x03 | 1 << 12, 1],
        [0x04, 1 << 5],
        [0x30, 1],
        [0x46 | 1 << 30, 0],
    ];
    for command in commands {
        for strict_commands in [false, true] {
            let mut lab = Lab::new(Config { strict_commands, ..linux() });
            lab.push(command);
            lab.run_commands();
            let error = if strict_commands { gerror::CMDQ_ERR } else { 0 };
            assert_eq!(lab.r32(r::GERROR), error, "{command:x?}");
        }
    }
    // None of these has one.
    let mut lab = Lab::new(Config { strict_commands: true, hyp: true, ..linux() });
    for command in [
        cfgi_ste(SID),
        CFGI_ALL,
        cfgi_cd(SID, 3),
        tlbi_va(1, 0xffff_ffff_ffff_f000),
        [0x13 | 7 << 32 | 31 << 12 | 31 << 20, 0xf00],
        [0x22 | 1 << 48, 0x1001],
        [0x2a | 7 << 32, 0x000f_ffff_ffff_f001],
        NSNH_ALL,
        [0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | 9 << 32, 0x1000_0040],
    ] {
        lab.push(command);
        lab.run_commands();
        assert_eq!(lab.r32(r::GERROR), 0, "{command:x?}");
        lab.msis();
    }
}

/// 4.2: prefetches fill the caches, or do nothing; what they run into is not recorded.
#[test]
fn prefetches() {
    for prefetch in [true, false] {
        let (mut lab, mut tables) = Lab::stage1(Config { prefetch, ..linux() });
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x4000, RW);
        lab.command([0x01 | u64::from(SID) << 32, 0]);
        let fetches = if prefetch { 4 } else { 6 };
        assert_eq!(lab.fetches(|lab| lab.read(0x1000)), (fetches, End::To(0x8000_1000)), "{prefetch}");
        lab.command([0x02 | u64::from(SID) << 32, 0x2000 | 1]);
        for address in [0x2000, 0x3000] {
            let fetches = if prefetch { 0 } else { 4 };
            assert_eq!(lab.fetches(|lab| lab.read(address)).0, fetches, "{prefetch}");
        }
        assert_eq!(lab.fetches(|lab| lab.read(0x4000)).0, 4, "beyond");
        lab.command([0x02 | u64::from(SID) << 32, 0x9000]);
        lab.command([0x02 | u64::from(SID + 1) << 32, 0x1000]);
        lab.command([0x01 | 0xffff << 32, 0]);
        assert_eq!(lab.events(), [[0; 4]; 0]);
    }
}

/// A queue that is disabled in the middle of a prefetch leaves nothing behind that SMMUEN or a CMD_SYNC would wait for.
#[test]
fn disabling_a_prefetching_queue() {
    let (mut lab, _) = Lab::stage1(Config { prefetch: true, ..linux() });
    lab.push([0x01 | u64::from(SID) << 32, 0]);
    lab.smmu.step_command(&lab.ram);
    assert!(!lab.idle(), "one fetch a step");
    lab.w32(r::CR0, 0);
    assert_eq!(lab.r32(r::CR0ACK), 0);
    lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN);
    lab.run_commands();
    lab.command(CFGI_ALL);
}

/// 3.18: a source with an MSI raises its wire, too, or does not.
#[test]
fn wires() {
    for (wires, address, raised) in [(true, 0x1000, true), (false, 0x1000, false), (false, 0, true)] {
        let mut lab = Lab::new(Config { wires, ..linux() });
        lab.push([0x46 | 1 << 12, address]);
        lab.run_commands();
        assert_eq!(lab.smmu.take_wired().cmdq_sync, raised);
        assert_eq!(lab.msis().len(), usize::from(address != 0));
    }
}

/// 3.17.6: CR0.VMW makes invalidations of one VMID ones of its group; look-ups stay exact.
#[test]
fn vmid_wildcards() {
    for (vmw, of, gone) in [
        (0, 5, false),
        (1, 5, true),
        (1, 6, false),
        (2, 6, true),
        (2, 8, false),
        (4, 15, true),
        (7, 5, false),
    ] {
        let (mut lab, mut tables) = Lab::stage1(Config { vmw: true, ..linux() });
        assert_eq!(lab.r32(r::IDR0) >> 17 & 1, 1);
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let mut ste = ste_stage1(CDS);
        ste[2] = 4;
        lab.ste(SID, ste);
        let cr0 = lab.r32(r::CR0);
        lab.w32(r::CR0, cr0 | vmw << 6);
        assert_eq!(lab.r32(r::CR0ACK), cr0 | vmw << 6);
        lab.read(0x1000);
        lab.unmap(&mut tables, 3, 0x1000);
        lab.command([0x12 | of << 32 | 1 << 48, 0x1001]);
        assert_eq!(lab.read(0x1000) == End::Abort, gone, "VMW {vmw}, VMID {of}");
    }
    let mut lab = Lab::new(linux());
    let cr0 = lab.r32(r::CR0);
    lab.w32(r::CR0, cr0 | 1 << 6);
    assert_eq!(lab.r32(r::CR0), cr0, "RES0 without the feature");
}

/// 6.3.9: SMMUEN written again before its update is complete: the first value counts; up to SMMUv3.1 the last may.
#[test]
fn cr0_during_an_update() {
    for (cr0_last, acknowledged) in [(false, 0), (true, r::cr0::SMMUEN)] {
        let config = Config { cr0_last, aidr: 1, ..linux() };
        let (mut lab, mut tables) = Lab::stage1(config);
        lab.map(&mut tables, 0x1000, 0x8000_1000, 0x1000, RW);
        let (id, _) = lab.translate(Transaction::new(SID, 0x1000, AccessKind::Write)).unwrap();
        lab.w32(r::CR0, r::cr0::CMDQEN);
        lab.w32(r::CR0, r::cr0::EVENTQEN | r::cr0::SMMUEN);
        assert_eq!(lab.r32(r::CR0) & !r::cr0::SMMUEN, r::cr0::EVENTQEN, "other fields are independent");
        lab.smmu.complete(id);
        assert_eq!(lab.r32(r::CR0ACK), r::cr0::EVENTQEN | acknowledged, "last value: {cr0_last}");
        assert_eq!(lab.r32(r::CR0), lab.r32(r::CR0ACK));
    }
    assert!(Config { cr0_last: true, aidr: 2, ..linux() }.validate().is_err());
}

/// 3.4.3, 6.3: addresses of queues and MSIs are truncated to OAS; registers may hold the bits beyond, or not.
#[test]
fn addresses_beyond_oas() {
    const BEYOND: u64 = 1 << 47;
    for wide_addresses in [true, false] {
        let mut lab = Lab::reset(Config { wide_addresses, ..linux() });
        lab.w64(r::CMDQ_BASE, CMDQ | LOG2_CMDQ | BEYOND);
        lab.w64(r::EVENTQ_BASE, EVENTQ | LOG2_EVENTQ | BEYOND | 1 << 62);
        lab.w64(r::STRTAB_BASE, STRTAB | BEYOND);
        lab.w64(r::EVENTQ_IRQ_CFG0, 0x808_0040 | BEYOND);
        lab.w32(r::STRTAB_BASE_CFG, 8);
        let held = if wide_addresses { BEYOND } else { 0 };
        let read = |lab: &mut Lab, offset| lab.smmu.mmio_read(offset, 8).unwrap();
        assert_eq!(read(&mut lab, r::CMDQ_BASE), CMDQ | LOG2_CMDQ | held);
        assert_eq!(read(&mut lab, r::EVENTQ_BASE), EVENTQ | LOG2_EVENTQ | held | 1 << 62, "WA stays");
        assert_eq!(read(&mut lab, r::STRTAB_BASE), STRTAB | held);
        assert_eq!(read(&mut lab, r::EVENTQ_IRQ_CFG0), 0x808_0040 | held);
        lab.w32(r::CR2, r::cr2::RECINVSID);
        lab.w32(r::IRQ_CTRL, r::irq_ctrl::EVENTQ);
        lab.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
        lab.push([0x46 | 1 << 12 | 7 << 32, BEYOND | 0x5000]);
        lab.run_commands();
        lab.dma(Transaction::new(0x1000, 0, AccessKind::Read));
        assert_eq!(code(lab.event()), 0x02, "the record is where EVENTQ_BASE says without the bits beyond");
        let msis: Vec<_> = lab.msis().iter().map(|msi| msi.address).collect();
        assert_eq!(msis, [0x5000, 0x808_0040]);
    }
}

/// 3.4.3 (5): an STE or L1STD beyond OAS: F_STE_FETCH with the whole address, or the address is truncated.
#[test]
fn stes_beyond_oas() {
    const BEYOND: u64 = 1 << 47;
    for (ste_truncate, two_levels) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut lab = Lab::new(Config { ste_truncate, ..linux() });
        lab.ste(SID, STE_BYPASS);
        let enabled = lab.r32(r::CR0);
        lab.w32(r::CR0, 0);
        if two_levels {
            lab.w32(r::STRTAB_BASE_CFG, 1 << 16 | 6 << 6 | 16);
            lab.w64(r::STRTAB_BASE, 0x1040_0000);
            lab.ram.set(0x1040_0000, STRTAB | BEYOND | 7);
        } else {
            lab.w64(r::STRTAB_BASE, STRTAB | BEYOND);
        }
        lab.w32(r::CR0, enabled);
        if ste_truncate {
            assert_eq!(lab.read(0x1000), End::To(0x1000), "two levels: {two_levels}");
        } else {
            assert_eq!(lab.read(0x1000), End::Abort);
            let event = lab.event();
            assert_eq!((code(event), event[3]), (0x03, STRTAB | BEYOND | u64::from(SID) << 6));
        }
    }
}

/// 3.4.3 (1) to (4): a CD beyond the address size: C_BAD_STE and C_BAD_SUBSTREAMID of a PA; of an IPA also, or a stage 2
/// translation fault.
#[test]
fn cds_beyond_the_address_size() {
    const BEYOND: u64 = 1 << 50;
    let s2 = 7 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    for (nested, cd_ipa_check, two_levels, event) in [
        (false, false, false, 0x04),
        (false, false, true, 0x08),
        (true, false, false, 0x10),
        (true, false, true, 0x10),
        (true, true, false, 0x04),
        (true, true, true, 0x08),
    ] {
        let mut lab = Lab::new(Config { cd_ipa_check, ssidsize: 8, cd2l: true, ..linux() });
        let mut cfg = pgtable::Stage2 { tsz: 24, sl0: 1, oas: 44, ..pgtable::Stage2::default() };
        let mut tables = lab.tables2(&mut cfg);
        lab.map(&mut tables, CDS, CDS, 0x1000, S2_RW);
        let config = if nested { 7 } else { 5 };
        let pointer = match two_levels {
            true => CDS | 1 << 4 | 8 << 59,
            false => CDS | BEYOND,
        };
        lab.ram.set(CDS, BEYOND | 1);
        lab.ste(SID, [1 | config << 1 | pointer, 1 << 44 | 2, s2, S2_TABLES]);
        let t = Transaction::new(SID, 0x1000, AccessKind::Read);
        let t = if two_levels { t.with_ssid(1) } else { t };
        assert_eq!(lab.dma(t), End::Abort);
        assert_eq!(code(lab.event()), event, "nested {nested}, two levels {two_levels}");
    }
}

/// 4.4.1.1: a range whose address is not aligned to the block that TTL names: from the granule on, from the block on, or
/// nothing is removed.
#[test]
fn unaligned_ranges() {
    use smmu_model::Unaligned::{Block, Granule, Nothing};
    const BLOCK: u64 = 0x20_0000;
    // NUM 0, SCALE 9: 512 granules, the size of a block; TTL 2 and TG 4 KiB.
    let tlbi = |va: u64| [0x12 | 9 << 20 | 1 << 48, va | 1 << 10 | 2 << 8 | 1];
    for (tlbi_unaligned, removed) in [(Granule, [true, true]), (Block, [true, false]), (Nothing, [false; 2])]
    {
        let (mut lab, mut tables) = Lab::stage1(Config { tlbi_unaligned, ..linux() });
        lab.map(&mut tables, BLOCK, 0x8000_0000, 2 * BLOCK, RW);
        let fill = |lab: &mut Lab| [BLOCK, 2 * BLOCK].map(|va| lab.fetches(|lab| lab.read(va)).0 != 0);
        fill(&mut lab);
        lab.command(tlbi(BLOCK + 0x1000));
        assert_eq!(fill(&mut lab), removed, "{tlbi_unaligned:?}");
        lab.command(tlbi(BLOCK));
        assert_eq!(fill(&mut lab), [true, false], "an aligned one is what it is");
    }
    for text in ["granule", "block", "nothing"] {
        assert!(Config::parse(&format!("tlbi-unaligned={text}")).is_ok());
    }
    assert!(
        Config::parse("tlbi-unaligned=all").unwrap_err().to_string().contains("granule, block or nothing")
    );
}
