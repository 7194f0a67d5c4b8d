//! Planted mistakes, each beside a twin that does the same without it: the checker names the one and says nothing of
//! the other.

mod guest;

use guest::*;
use smmu_model::checker::{Kind, Role};
use smmu_model::spec::registers as r;
use smmu_model::{AccessKind, AtsAnswer, PageRequest, Transaction, World};

/// The code address of a role's site.
fn code(report: &smmu_model::checker::Report, role: Role) -> u64 {
    report.sites.iter().find(|(r, _)| *r == role).map_or(0, |(_, site)| site.pc)
}

fn missing(report: &smmu_model::checker::Report) -> &str {
    report.missing.as_deref().unwrap_or("")
}

/// Maps a page, lets the device use it, unmaps it as `unmap` does, maps another at the same address and uses that.
fn remapped(g: &mut Guest, unmap: impl Fn(&mut Guest)) {
    g.at(0xa000).map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    g.at(0xb000).clear(IOVA);
    g.at(0xc000);
    unmap(g);
    g.at(0xd000).map(IOVA, PAGE + 0x4000, 0x1000, RW);
    assert!(g.read(IOVA));
}

#[test]
fn an_iova_is_reused_without_tlbi() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        remapped(g, |g| {
            if !wrong {
                g.commands(&[tlbi_va(1, IOVA, 1)]);
            }
        });
    });
    assert_eq!((report.sid, report.ssid, report.asid), (Some(SID), Some(0), Some(1)));
    assert_eq!((report.iova, report.level, report.world), (Some(IOVA), Some(3), Some(World::NsEl1)));
    assert!(missing(&report).starts_with("CMD_TLBI_NH_VA(VMID=0, ASID=1, Address=0x12345000"), "{report:?}");
    assert_eq!(code(&report, Role::Unmap), 0xb000);
    assert_eq!(code(&report, Role::Reuse), 0xd000);
}

#[test]
fn the_map_is_named_once_its_table_is_known() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        g.map(IOVA + 0x1000, PAGE, 0x1000, RW);
        assert!(g.read(IOVA + 0x1000));
        remapped(g, |g| {
            if !wrong {
                g.commands(&[tlbi_va(1, IOVA, 1)]);
            }
        });
    });
    assert_eq!(code(&report, Role::Map), 0xa000);
}

#[test]
fn the_tlbi_names_another_asid() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        remapped(g, |g| g.commands(&[tlbi_va(if wrong { 2 } else { 1 }, IOVA, 1)]));
    });
    assert!(missing(&report).ends_with("names another ASID"), "{report:?}");
    assert_eq!(code(&report, Role::Invalidation), 0xc000);
}

#[test]
fn the_tlbi_has_no_cmd_sync() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        remapped(g, |g| match wrong {
            true => g.unsynchronised(&[tlbi_va(1, IOVA, 1)]),
            false => g.commands(&[tlbi_va(1, IOVA, 1)]),
        });
    });
    assert!(missing(&report).starts_with("CMD_SYNC: CMD_TLBI_NH_VA("), "{report:?}");
}

#[test]
fn the_tlbi_comes_before_the_descriptor_is_cleared() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        if wrong {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
        }
        g.clear(IOVA);
        if !wrong {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
        }
        g.map(IOVA, PAGE + 0x4000, 0x1000, RW);
    });
    assert!(missing(&report).ends_with("came before the change"), "{report:?}");
}

#[test]
fn a_range_is_too_short() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        g.map(IOVA, PAGE, 0x4000, RW);
        (0..4).for_each(|n| assert!(g.read(IOVA + n * 0x1000)));
        (0..4).for_each(|n| g.clear(IOVA + n * 0x1000));
        let num = if wrong { 2 } else { 3 };
        g.commands(&[[0x12 | 1 << 48 | num << 12, IOVA | 1 << 10 | 3 << 8 | 1]]);
        g.map(IOVA + 0x3000, PAGE + 0x8000, 0x1000, RW);
    });
    assert_eq!(report.iova, Some(IOVA + 0x3000));
    assert!(missing(&report).ends_with("does not reach this address"), "{report:?}");
}

#[test]
fn a_ttl_names_the_wrong_level() {
    let report = planted(Kind::IovaReuse, |g, wrong| {
        remapped(g, |g| {
            let ttl = if wrong { 2 } else { 3 };
            g.commands(&[[0x12 | 1 << 48, IOVA | 1 << 10 | ttl << 8 | 1]]);
        });
    });
    assert!(missing(&report).ends_with("has a TTL of another level"), "{report:?}");
}

#[test]
fn stage_2_is_unmapped_without_tlbi() {
    let report = planted_in(Guest::stage2, Kind::IovaReuse, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, S2_RW);
        assert!(g.read(IOVA));
        g.clear(IOVA);
        g.commands(&[[0x2a | if wrong { 4 } else { 3 } << 32, IOVA | 1]]);
        g.map(IOVA, PAGE + 0x4000, 0x1000, S2_RW);
    });
    assert_eq!((report.world, report.vmid), (Some(World::NsEl1Stage2), Some(3)));
    assert!(missing(&report).ends_with("names another VMID"), "{report:?}");
}

#[test]
fn a_table_is_freed_although_leaf_only_was_invalidated() {
    let report = planted(Kind::TableReuse, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        let (table, leaf) = (g.slot(IOVA, 2), g.slot(IOVA, 3));
        g.at(0xb000).store(leaf, 0);
        g.store(table, 0);
        g.commands(&[tlbi_va(1, IOVA, u64::from(wrong))]);
        // The page is somebody else's now.
        g.at(0xe000).store(leaf & !0xfff | 0x80, 0xdead_beef);
    });
    assert_eq!((report.level, report.asid), (Some(2), Some(1)));
    assert!(missing(&report).contains("Leaf=0) and CMD_SYNC"), "{report:?}");
    assert!(missing(&report).ends_with("has Leaf=1, which leaves tables cached"), "{report:?}");
    assert_eq!((code(&report, Role::Unmap), code(&report, Role::Reuse)), (0xb000, 0xe000));
}

#[test]
fn a_page_becomes_another_without_a_break() {
    let report = planted(Kind::BreakBeforeMake, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        let at = g.slot(IOVA, 3);
        if !wrong {
            g.store(at, 0);
            g.commands(&[tlbi_va(1, IOVA, 1)]);
        }
        g.at(0xd000).store(at, (PAGE + 0x4000) | RW | 3);
        if wrong {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
        }
    });
    assert!(missing(&report).starts_with("an invalid descriptor, CMD_TLBI_NH_VA("));
    assert_eq!(code(&report, Role::Unmap), 0xd000);
}

#[test]
fn permissions_and_the_access_flag_may_change_in_place() {
    let mut g = Guest::new();
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    let at = g.slot(IOVA, 3);
    let leaf = g.ram.word(at);
    g.store(at, leaf | 1 << 7);
    g.commands(&[tlbi_va(1, IOVA, 1)]);
    assert!(g.read(IOVA));
    g.store(at, leaf);
    assert!(g.read(IOVA));
    assert_eq!(g.reports(), []);
}

#[test]
fn a_page_may_come_back_with_less_permitted() {
    // As mprotect does it: cleared, written with less, and then invalidated.
    let mut g = Guest::new();
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.dma(AccessKind::Write, IOVA));
    let at = g.slot(IOVA, 3);
    let leaf = g.ram.word(at);
    for leaf in [leaf | 1 << 7, leaf] {
        g.store(at, 0);
        g.store(at, leaf);
        g.commands(&[tlbi_va(1, IOVA, 1)]);
        assert!(g.read(IOVA));
    }
    assert_eq!(g.reports(), []);
}

#[test]
fn hardware_updates_are_nobodys_mistake() {
    let mut g = Guest::new();
    // HA and HD.
    g.context(CDS, {
        let mut cd = cd(1, TABLES);
        cd[0] |= 3 << 42;
        cd
    });
    g.commands(&[cfgi_cd()]);
    g.map(IOVA, PAGE, 0x1000, RW & !(1 << 10) | 1 << 7 | 1 << 51);
    assert!(g.read(IOVA) && g.dma(AccessKind::Write, IOVA));
    let at = g.slot(IOVA, 3);
    assert_eq!(g.ram.word(at) & (1 << 7 | 1 << 10), 1 << 10, "hardware did");
    assert!(g.read(IOVA));
    assert_eq!(g.reports(), []);
}

#[test]
fn a_restricted_page_is_never_invalidated() {
    let report = planted(Kind::StaleTranslation, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.dma(AccessKind::Write, IOVA));
        let at = g.slot(IOVA, 3);
        let leaf = g.ram.word(at);
        g.at(0xb000).store(at, leaf | 1 << 7);
        if !wrong {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
        }
        g.pass(200_000_000);
        assert!(g.read(IOVA));
    });
    assert_eq!(code(&report, Role::Unmap), 0xb000);
}

#[test]
fn dma_goes_on_after_the_unmap() {
    let report = planted(Kind::DmaAfterUnmap, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        g.at(0xb000).clear(IOVA);
        if wrong {
            // Lazily: the translation is still cached.
            assert!(g.read(IOVA));
        }
        g.commands(&[tlbi_va(1, IOVA, 1)]);
    });
    assert_eq!((report.sid, report.iova, code(&report, Role::Unmap)), (Some(SID), Some(IOVA), 0xb000));
}

#[test]
fn dma_goes_on_after_the_unmap_and_its_tlbi() {
    let report = planted(Kind::DmaAfterUnmap, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        g.at(0xb000).clear(IOVA);
        g.commands(&[tlbi_va(1, IOVA, 1)]);
        if wrong {
            assert!(!g.read(IOVA + 8));
        }
    });
    assert_eq!((report.iova, code(&report, Role::Unmap)), (Some(IOVA + 8), 0xb000));
}

#[test]
fn dma_to_nowhere() {
    let report = planted(Kind::DmaUnmapped, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        if wrong {
            assert!(!g.read(IOVA + 0x1000));
        }
    });
    assert_eq!((report.sid, report.iova), (Some(SID), Some(IOVA + 0x1000)));
}

#[test]
fn a_write_to_a_read_only_page() {
    let report = planted(Kind::DmaForbidden, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW | 1 << 7);
        assert!(g.dma(if wrong { AccessKind::Write } else { AccessKind::Read }, IOVA) != wrong);
    });
    assert_eq!(report.iova, Some(IOVA));
}

#[test]
fn the_smmu_is_off_and_the_device_does_not_know() {
    let report = planted(Kind::DmaBypass, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        g.map(PAGE, PAGE, 0x1000, RW);
        assert!(g.read(IOVA) && g.read(PAGE));
        g.w32(r::CR0, r::cr0::CMDQEN | r::cr0::EVENTQEN);
        // An address that is the same on both sides is nobody's mistake.
        assert!(g.read(if wrong { IOVA } else { PAGE }));
    });
    assert_eq!(report.iova, Some(IOVA));
}

#[test]
fn memory_is_mapped_again_while_dma_is_in_flight() {
    let report = planted(Kind::DmaInFlight, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        let id = g.begin(Transaction::new(SID, IOVA, AccessKind::Write)).unwrap();
        g.at(0xb000).clear(IOVA);
        if !wrong {
            // CMD_SYNC waits for the transaction.
            g.push(tlbi_va(1, IOVA, 1));
            g.push([0x46, 0]);
            g.consume();
            g.smmu.complete(id);
            g.consume();
        }
        g.at(0xd000).map(IOVA + 0x8000, PAGE, 0x1000, RW);
        if wrong {
            g.smmu.complete(id);
        }
    });
    assert_eq!((report.iova, code(&report, Role::Reuse)), (Some(IOVA), 0xd000));
}

#[test]
fn an_ste_is_changed_without_cfgi() {
    let report = planted(Kind::StaleSte, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        g.at(0xb000).store(STRTAB + u64::from(SID) * 64, 1 | 4 << 1);
        if !wrong {
            g.commands(&[cfgi_ste()]);
        }
        g.pass(200_000_000);
        g.read(if wrong { IOVA } else { PAGE });
    });
    assert_eq!((report.sid, code(&report, Role::Unmap)), (Some(SID), 0xb000));
    assert_eq!(missing(&report), "CMD_CFGI_STE(StreamID=0x18) and CMD_SYNC");
}

#[test]
fn a_cd_is_changed_without_cfgi() {
    let report = planted(Kind::StaleCd, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        // Other memory attributes.
        g.at(0xb000).store(CDS + 24, 0x00ff_04ff);
        if !wrong {
            g.commands(&[cfgi_cd()]);
        }
        g.pass(200_000_000);
        assert!(g.read(IOVA));
    });
    assert_eq!((report.sid, report.ssid), (Some(SID), Some(0)));
    assert_eq!(missing(&report), "CMD_CFGI_CD(StreamID=0x18, SubstreamID=0) and CMD_SYNC");
}

#[test]
fn a_cd_table_is_freed_while_the_old_ste_is_held() {
    let report = planted(Kind::StaleSte, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        g.at(0xb000).store(STRTAB + u64::from(SID) * 64, 1);
        if !wrong {
            g.commands(&[cfgi_ste()]);
        }
        g.at(0xe000).store(CDS, 0x6c6c_6c6c);
    });
    assert_eq!((code(&report, Role::Unmap), code(&report, Role::Reuse)), (0xb000, 0xe000));
}

/// Where a level 1 descriptor leads after it was changed.
const ELSEWHERE: u64 = CDS + 0x8000;

/// A guest with a two-level stream table, or a two-level CD table as well.
fn two_levels(cds: bool) -> Guest {
    let mut g = Guest::with(smmu_model::Config { ssidsize: 8, ..config() });
    g.w32(r::CR0, r::cr0::CMDQEN | r::cr0::EVENTQEN);
    // SPLIT=6: StreamIDs 0 to 0x3f are described at the start of another table, and still are where they were.
    g.store(L1STDS, STRTAB | 7);
    if cds {
        // S1Fmt=1, S1CDMax=7: level 2 tables of 64 CDs.
        let mut ste = ste_stage1(L1CDS);
        ste[0] |= 1 << 4 | 7 << 59;
        g.ste(ste);
        g.store(L1CDS, CDS | 1);
    }
    g.w64(r::STRTAB_BASE, L1STDS);
    g.w32(r::STRTAB_BASE_CFG, 8 | 6 << 6 | 1 << 16);
    g.commands(&[[0x04, 31], [0x30, 0]]);
    g.w32(r::CR0, r::cr0::SMMUEN | r::cr0::CMDQEN | r::cr0::EVENTQEN);
    g.map(IOVA, PAGE, 0x1000, RW);
    let ssid = cds.then_some(0);
    let id = g.begin(Transaction { ssid, ..Transaction::new(SID, IOVA, AccessKind::Read) }).unwrap();
    g.smmu.complete(id);
    g
}

const L1STDS: u64 = STRTAB + 0x8_0000;
const L1CDS: u64 = CDS + 0x4000;

#[test]
fn a_level_1_stream_table_descriptor_is_changed_without_cfgi() {
    for reuse in [false, true] {
        let report = planted_in(
            || two_levels(false),
            Kind::StaleL1Std,
            |g, wrong| {
                let old =
                    (0..4).map(|n| g.ram.word(STRTAB + u64::from(SID) * 64 + 8 * n)).collect::<Vec<_>>();
                (0..4).for_each(|n| g.store(ELSEWHERE + u64::from(SID) * 64 + 8 * n, old[n as usize]));
                g.at(0xb000).store(L1STDS, ELSEWHERE | 7);
                // Leaf=1 leaves it.
                g.at(0xc000).commands(&[[cfgi_ste()[0], u64::from(wrong)]]);
                if reuse {
                    g.at(0xe000).store(STRTAB + 0x80, 0x6c6c);
                } else {
                    g.pass(200_000_000);
                    assert!(g.read(IOVA));
                }
            },
        );
        assert_eq!((code(&report, Role::Unmap), code(&report, Role::Invalidation)), (0xb000, 0xc000));
        assert_eq!(code(&report, Role::Reuse), if reuse { 0xe000 } else { 0 });
        assert!(
            missing(&report).starts_with("CMD_CFGI_STE(StreamID=0x0, Leaf=0) and CMD_SYNC: "),
            "{report:?}"
        );
        assert!(
            missing(&report).ends_with("has Leaf=1, which leaves level 1 descriptors cached"),
            "{report:?}"
        );
    }
}

#[test]
fn a_level_1_cd_table_descriptor_is_changed_without_cfgi() {
    let report = planted_in(
        || two_levels(true),
        Kind::StaleL1Cd,
        |g, wrong| {
            g.context(ELSEWHERE, cd(1, TABLES));
            g.at(0xb000).store(L1CDS, ELSEWHERE | 1);
            g.commands(&[[cfgi_cd()[0], u64::from(wrong)]]);
            g.pass(200_000_000);
            let t = Transaction { ssid: Some(0), ..Transaction::new(SID, IOVA, AccessKind::Read) };
            let id = g.begin(t).unwrap();
            g.smmu.complete(id);
        },
    );
    assert_eq!((report.sid, report.ssid, code(&report, Role::Unmap)), (Some(SID), Some(0), 0xb000));
    assert!(missing(&report).starts_with("CMD_CFGI_CD(StreamID=0x18, SubstreamID=0, Leaf=0)"), "{report:?}");
}

#[test]
fn level_1_descriptors_may_become_valid_and_come_back() {
    let mut g = two_levels(true);
    // One that nobody could have used.
    g.begin(Transaction::new(0x60, IOVA, AccessKind::Read));
    g.store(L1STDS + 8, ELSEWHERE | 7);
    // One that is what it was before anybody could tell.
    g.store(L1CDS, 0);
    g.store(L1CDS, CDS | 1);
    g.pass(200_000_000);
    let t = Transaction { ssid: Some(0), ..Transaction::new(SID, IOVA, AccessKind::Read) };
    let id = g.begin(t).unwrap();
    g.smmu.complete(id);
    assert_eq!(g.reports(), []);
}

#[test]
fn a_checker_that_joins_later_knows_what_is_mapped() {
    for (new, attrs) in [(Guest::new as fn() -> Guest, RW), (Guest::stage2, S2_RW)] {
        let report = planted_in(new, Kind::IovaReuse, |g, wrong| {
            g.map(IOVA, PAGE, 0x1000, attrs);
            assert!(g.read(IOVA));
            g.rejoin();
            g.at(0xb000).clear(IOVA);
            if !wrong {
                g.commands(&[[0x30, 0]]);
            }
            g.at(0xd000).map(IOVA, PAGE + 0x4000, 0x1000, attrs);
        });
        assert_eq!((report.iova, report.sid), (Some(IOVA), Some(SID)));
        assert_eq!((code(&report, Role::Unmap), code(&report, Role::Reuse)), (0xb000, 0xd000));
    }
    planted_in(
        || two_levels(true),
        Kind::StaleL1Cd,
        |g, wrong| {
            g.rejoin();
            g.context(ELSEWHERE, cd(1, TABLES));
            g.store(L1CDS, ELSEWHERE | 1);
            g.commands(&[[cfgi_cd()[0], u64::from(wrong)]]);
            g.pass(200_000_000);
            let t = Transaction { ssid: Some(0), ..Transaction::new(SID, IOVA, AccessKind::Read) };
            let id = g.begin(t).unwrap();
            g.smmu.complete(id);
        },
    );
    planted(Kind::CommandOverwritten, |g, wrong| {
        g.push([0x30, 0]);
        g.push([0x46, 0]);
        g.rejoin();
        if !wrong {
            g.consume();
        }
        let slot = CMDQ + u64::from((g.prod - 2) & 63) * 16;
        g.store(slot, 0x04);
        g.store(slot + 8, 31);
        g.consume();
    });
}

#[test]
fn a_checker_joins_whatever_the_guest_has_built() {
    let mut g = Guest::new();
    // Tables that are their own tables, and a stream table of everything.
    (0..512).for_each(|n| g.store(TABLES + 8 * n, TABLES | 3));
    g.rejoin();
    assert_eq!(g.reports(), []);
}

#[test]
fn a_valid_ste_is_rewritten_word_by_word() {
    let other = CDS + 0x1000;
    let report = planted(Kind::TornSte, |g, wrong| {
        g.context(other, cd(2, TABLES));
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        let ste = STRTAB + u64::from(SID) * 64;
        g.at(0xb000);
        if !wrong {
            g.store(ste, 0);
            g.commands(&[cfgi_ste()]);
        }
        // VMID and CD table: both matter.
        g.store(ste + 16, 5);
        if !wrong {
            g.commands(&[cfgi_ste()]);
        }
        g.store(ste, ste_stage1(other)[0]);
        g.commands(&[cfgi_ste()]);
        g.commands(&[[0x30, 0]]);
    });
    assert_eq!((report.sid, code(&report, Role::Unmap)), (Some(SID), 0xb000));
}

/// Rewrites the valid STE word by word, `quiet` after the device's last request, and reads through it then if `reads`,
/// before it is invalidated. `may`: what is known of the device.
fn rewritten_ste(may: Option<bool>, quiet: u64, reads: bool) -> Vec<Kind> {
    let mut g = Guest::new();
    let other = CDS + 0x1000;
    g.context(other, cd(2, TABLES));
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    g.pass(quiet);
    if let Some(may) = may {
        g.ram.may_request(may);
    }
    let ste = STRTAB + u64::from(SID) * 64;
    g.store(ste + 16, 5);
    g.store(ste, ste_stage1(other)[0]);
    if reads {
        g.read(IOVA);
    }
    g.commands(&[cfgi_ste(), [0x30, 0]]);
    g.read(IOVA);
    g.checker.take_reports().iter().map(|report| report.kind).collect()
}

/// Section 3.21.3: an SMMU may read an STE at any time while SMMUEN is 1. What it read matters to a device that makes
/// requests before the invalidation: one that may, or one that does.
#[test]
fn a_torn_ste_matters_to_a_device_that_may_make_requests() {
    let torn = [Kind::TornSte];
    let long = 1_000_000_000;
    assert_eq!(rewritten_ste(Some(true), 0, false), torn);
    assert_eq!(rewritten_ste(Some(true), long, false), torn, "however long it was quiet");
    assert_eq!(rewritten_ste(Some(false), 0, false), [], "as of a function that is about to be removed");
    assert_eq!(rewritten_ste(Some(false), 0, true), torn, "it does all the same");
    assert_eq!(rewritten_ste(None, 0, false), torn);
    assert_eq!(rewritten_ste(None, long, false), [], "it seems to be quiet");
    assert_eq!(rewritten_ste(None, long, true), torn, "but it is not");
}

#[test]
fn a_valid_cd_is_rewritten_word_by_word() {
    planted(Kind::TornCd, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        let new = cd(7, TABLES + 0x20_0000);
        if !wrong {
            g.store(CDS, 0);
            g.commands(&[cfgi_cd()]);
        }
        g.store(CDS + 8, new[1]);
        if !wrong {
            g.commands(&[cfgi_cd()]);
        }
        g.store(CDS, new[0]);
        g.commands(&[cfgi_cd(), [0x30, 0]]);
    });
}

#[test]
fn an_asid_is_reused_without_tlbi() {
    let report = planted(Kind::TagReuse, |g, wrong| {
        g.map(IOVA, PAGE, 0x1000, RW);
        assert!(g.read(IOVA));
        g.at(0xb000).store(CDS, 0);
        g.commands(&[cfgi_cd()]);
        if !wrong {
            g.commands(&[[0x11 | 1 << 48, 0]]);
        }
        let other = TABLES + 0x20_0000;
        g.at(0xd000).store(CDS + 8, other);
        // The SMMU may read the doublewords in any order.
        g.commands(&[cfgi_cd()]);
        g.store(CDS, cd(1, other)[0]);
        g.commands(&[cfgi_cd()]);
        // Two levels of nothing: its own tables, the same address.
        let index = |shift: u32| (IOVA >> shift & 511) * 8;
        g.store(other + index(39), other + 0x1003);
        g.store(other + 0x1000 + index(30), PAGE & !0x3fff_ffff | RW | 1);
        assert!(g.read(IOVA));
    });
    assert_eq!((report.asid, code(&report, Role::Reuse)), (Some(1), 0xd000));
    assert_eq!(missing(&report), "CMD_TLBI_NH_ASID(VMID=0, ASID=1) and CMD_SYNC");
}

#[test]
fn an_illegal_command() {
    let report = planted(Kind::CommandIllegal, |g, wrong| {
        g.at(0xc000);
        g.unsynchronised(&[[if wrong { 0x7f } else { 0x30 }, 0]]);
        if wrong {
            // As Linux does: the command becomes a CMD_SYNC, and the queue goes on.
            g.store(CMDQ + u64::from((g.prod - 1) & 63) * 16, 0x46);
            g.w32(r::GERRORN, 1);
            g.consume();
        }
    });
    assert_eq!(code(&report, Role::Invalidation), 0xc000);
}

#[test]
fn reserved_bits_in_a_command() {
    let report = planted(Kind::CommandReserved, |g, wrong| {
        g.at(0xc000).commands(&[[0x30 | u64::from(wrong) << 20, 0]]);
    });
    assert_eq!(code(&report, Role::Invalidation), 0xc000);
}

#[test]
fn a_command_is_overwritten() {
    let report = planted(Kind::CommandOverwritten, |g, wrong| {
        g.at(0xc000).push([0x30, 0]);
        g.push([0x46, 0]);
        if !wrong {
            g.consume();
        }
        let slot = CMDQ + u64::from((g.prod - 2) & 63) * 16;
        g.at(0xd000).store(slot, 0x04);
        g.store(slot + 8, 31);
        g.consume();
    });
    assert_eq!((code(&report, Role::Invalidation), code(&report, Role::Reuse)), (0xc000, 0xd000));
}

#[test]
fn the_command_queue_is_overrun() {
    planted(Kind::CommandOverwritten, |g, wrong| {
        let ahead = if wrong { 65 } else { 64 };
        (0..64).for_each(|n| g.store(CMDQ + n * 16, 0x46));
        let prod = (g.prod + ahead) & 127;
        g.w32(r::CMDQ_PROD, prod);
    });
}

/// A CD whose faults stall.
fn stalling(g: &mut Guest) {
    let mut words = cd(1, TABLES);
    words[0] |= 1 << 44;
    g.context(CDS, words);
}

#[test]
fn a_stall_is_never_answered() {
    let report = planted(Kind::StallUnanswered, |g, wrong| {
        stalling(g);
        assert!(!g.read(IOVA));
        g.events();
        g.pass(1_000_000);
        if !wrong {
            g.commands(&[[0x44 | 1 << 13 | u64::from(SID) << 32, 0]]);
        }
        g.pass(3_000_000_000);
    });
    assert_eq!((report.sid, missing(&report)), (Some(SID), "CMD_RESUME(StreamID=0x18, STAG=0)"));
}

#[test]
fn an_unmap_under_a_stalling_device_is_no_mistake() {
    let mut g = Guest::new();
    stalling(&mut g);
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    g.clear(IOVA);
    assert!(g.read(IOVA), "still cached");
    g.commands(&[tlbi_va(1, IOVA, 1)]);
    assert!(!g.read(IOVA));
    g.events();
    g.map(IOVA, PAGE + 0x4000, 0x1000, RW);
    g.commands(&[[0x44 | 1 << 12 | u64::from(SID) << 32, 0]]);
    assert_eq!(g.reports(), []);
}

#[test]
fn an_overflow_is_never_acknowledged() {
    planted(Kind::OverflowUnacknowledged, |g, wrong| {
        // A stream that has no STE: events that are no mistake of DMA.
        for _ in 0..100 {
            g.begin(Transaction::new(0x20, 0, AccessKind::Read));
            g.events();
        }
        g.pass(1_000_000);
        if !wrong {
            g.w32(r::EVENTQ_CONS, 16 | r::OVERFLOW);
        }
        g.pass(3_000_000_000);
    });
}

/// Maps a page, gives it to the device's ATC, unmaps it with a TLBI, and what `unmap` does besides.
fn cached_by_the_device(g: &mut Guest, unmap: impl Fn(&mut Guest)) {
    g.at(0xa000).map(IOVA, PAGE, 0x1000, RW);
    assert!(matches!(g.ats(IOVA), AtsAnswer::Success(t) if t.address == PAGE && t.grants()));
    g.translated(PAGE);
    g.at(0xb000).clear(IOVA);
    g.at(0xc000);
    unmap(g);
}

#[test]
fn an_atc_is_not_told() {
    let report = planted_in(Guest::with_ats, Kind::AtcMissing, |g, wrong| {
        cached_by_the_device(g, |g| {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
            if !wrong {
                g.atc_inv(IOVA);
            }
        });
        g.at(0xd000).map(IOVA, PAGE + 0x4000, 0x1000, RW);
        g.at(0xe000).ats(IOVA);
    });
    assert_eq!((report.sid, report.iova, code(&report, Role::Unmap)), (Some(SID), Some(IOVA), 0xb000));
    assert_eq!(code(&report, Role::Reuse), 0xd000, "whether or not the device asks again");
    assert_eq!(missing(&report), "CMD_ATC_INV(StreamID=0x18, Address=0x12345000, Size=0) and CMD_SYNC");
}

#[test]
fn an_atc_that_was_not_told_goes_on() {
    planted_in(Guest::with_ats, Kind::AtcMissing, |g, wrong| {
        cached_by_the_device(g, |g| {
            g.commands(&[tlbi_va(1, IOVA, 1)]);
            if !wrong {
                g.atc_inv(IOVA);
            }
        });
        g.pass(200_000_000);
        if wrong {
            g.translated(PAGE + 8);
        }
    });
}

#[test]
fn an_atc_is_told_before_the_tlbi_is_complete() {
    let report = planted_in(Guest::with_ats, Kind::AtcEarly, |g, wrong| {
        cached_by_the_device(g, |g| {
            if wrong {
                g.atc_inv(IOVA);
            }
            g.commands(&[tlbi_va(1, IOVA, 1)]);
            if !wrong {
                g.atc_inv(IOVA);
            }
        });
        g.at(0xd000).map(IOVA, PAGE + 0x4000, 0x1000, RW);
        g.ats(IOVA);
    });
    assert_eq!(code(&report, Role::Invalidation), 0xc000);
}

#[test]
fn a_page_request_is_never_answered() {
    let report = planted_in(Guest::with_ats, Kind::PageRequestUnanswered, |g, wrong| {
        g.smmu.page_request(&PageRequest {
            sid: SID,
            ssid: None,
            address: IOVA,
            prg_index: 5,
            last: true,
            read: true,
            write: false,
            execute: false,
            privileged: false,
        });
        while g.smmu.pri_pending() {
            g.smmu.step_pri(&g.ram);
        }
        g.pass(1_000_000);
        if !wrong {
            g.commands(&[[0x41 | u64::from(SID) << 32, 5 | 2 << 12]]);
        }
        g.pass(3_000_000_000);
    });
    assert_eq!(missing(&report), "CMD_PRI_RESP(StreamID=0x18, PRGIndex=5)");
}

#[test]
fn lazy_unmaps_wait_for_their_flush() {
    // A hundred addresses are unmapped one by one; then all is flushed, and only then is any of them used again.
    let mut g = Guest::new();
    for round in 0..3 {
        for n in 0..100 {
            g.map(IOVA + n * 0x1000, PAGE + ((n + round) << 12), 0x1000, RW);
            assert!(g.read(IOVA + n * 0x1000));
            g.clear(IOVA + n * 0x1000);
        }
        g.commands(&[[0x11 | 1 << 48, 0]]);
    }
    assert_eq!(g.reports(), []);
}

#[test]
fn an_address_may_get_back_what_it_had() {
    let mut g = Guest::new();
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    g.clear(IOVA);
    g.map(IOVA, PAGE, 0x1000, RW);
    assert!(g.read(IOVA));
    assert_eq!(g.reports(), []);
}

#[test]
fn a_domain_goes_and_its_pages_are_used_for_anything() {
    let mut g = Guest::new();
    g.map(IOVA, PAGE, 0x8000, RW);
    (0..8).for_each(|n| assert!(g.read(IOVA + n * 0x1000)));
    // Detach, flush, free: in the order in which Linux does it.
    g.store(STRTAB + u64::from(SID) * 64, 1);
    g.commands(&[cfgi_ste()]);
    g.store(CDS, 0);
    g.commands(&[cfgi_cd()]);
    g.commands(&[[0x11 | 1 << 48, 0]]);
    for page in 0..4 {
        for word in 0..512 {
            g.store(TABLES + page * 0x1000 + word * 8, 0x0101_0101_0101_0101);
        }
    }
    (0..8).for_each(|n| g.store(CDS + n * 8, 0x5a5a_5a5b));
    assert_eq!(g.reports(), []);
}

#[test]
fn watching_changes_nothing() {
    let run = |watched: bool| {
        let mut g = Guest::new();
        if !watched {
            let smmu = serde_json::to_string(&g.smmu).unwrap();
            g.smmu = serde_json::from_str(&smmu).unwrap();
        }
        remapped(&mut g, |_| {});
        serde_json::to_string(&g.smmu).unwrap()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn every_kind_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
}
