//! Every STE and CD that an SMMU read and may still hold: all that memory has said since the last invalidation.

use std::collections::{BTreeMap, BTreeSet};

use super::site::Site;
use super::tables::Regime;
use crate::cache::World;
use crate::config::Config;
use crate::spec::cd::Cd;
use crate::spec::ste::Ste;
use crate::translate::{Context, Path, Stream};

/// Names an STE or a CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Ste(u32),
    Cd(u32, u32),
}

impl What {
    pub(super) fn sid(self) -> u32 {
        match self {
            What::Ste(sid) | What::Cd(sid, _) => sid,
        }
    }

    pub(super) fn cd(self) -> Option<u32> {
        match self {
            What::Ste(_) => None,
            What::Cd(_, cd) => Some(cd),
        }
    }
}

/// What memory said for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    seq: u64,
    words: [u64; 8],
    site: Option<Site>,
}

/// What an STE or CD means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Ste(Option<Stream>),
    Cd(Option<Context>),
}

/// One STE or CD at one address. There is always a version; the last is what memory says.
#[derive(Clone, Debug)]
pub(super) struct Structure {
    /// Of a CD: its stream when it was fetched.
    stream: Stream,
    versions: Vec<Version>,
    /// What the last one means.
    now: Meaning,
    /// The mistake with what it says now has been reported.
    pub(super) reported: bool,
    /// It could be seen torn since its last invalidation: who wrote it before, and who made it so.
    pub(super) torn: Option<(Option<Site>, Site)>,
}

/// How many versions are kept; in the middle of more, some are forgotten.
const MAX_VERSIONS: usize = 32;
/// Mixtures of versions that are looked at.
const MAX_MIXTURES: usize = 1024;

impl Structure {
    /// What words mean here, as far as it matters.
    fn meaning(&self, what: What, words: &[u64; 8], config: &Config, e2h: bool) -> Meaning {
        match decode(what, &self.stream, words, config, e2h) {
            Meaning::Ste(stream) => Meaning::Ste(stream.map(relevant)),
            cd => cd,
        }
    }

    fn push(&mut self, version: Version) {
        self.versions.push(version);
        if self.versions.len() > MAX_VERSIONS {
            self.versions.remove(MAX_VERSIONS / 2);
        }
    }

    /// Something that the last version's meaning depends on has changed.
    fn decode(&mut self, what: What, config: &Config, e2h: bool) {
        self.now = decode(what, &self.stream, &self.last().words, config, e2h);
    }

    fn last(&self) -> &Version {
        self.versions.last().unwrap_or_else(|| unreachable!("there is always a version"))
    }

    /// Whether more than what memory says now may be held.
    pub(super) fn is_changed(&self) -> bool {
        self.versions.len() > 1
    }

    /// Who wrote what memory says now, if anybody was seen to.
    pub(super) fn writer(&self) -> Option<Site> {
        self.last().site
    }
}

/// What the words of an STE, or of a CD of `stream`, mean.
fn decode(what: What, stream: &Stream, words: &[u64; 8], config: &Config, e2h: bool) -> Meaning {
    match what {
        What::Ste(_) => Meaning::Ste(Stream::decode(&Ste(*words), config, e2h).ok()),
        What::Cd(..) => Meaning::Cd(Context::decode(&Cd(*words), stream, config).ok()),
    }
}

/// Without what a stream's path does not look at.
fn relevant(mut stream: Stream) -> Stream {
    if stream.cds.max == 0 {
        stream.dss = 0;
    }
    let bypasses = stream.path == Path::Bypass || stream.path.has_stage2() || stream.dss == 1;
    if !bypasses {
        stream.overrides.shcfg = 0;
        stream.overrides.memattr = None;
    }
    if stream.path == Path::Bypass {
        stream.vmid = 0;
    }
    stream
}

/// Something stale: what memory said before, and since when it does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) map: Option<Site>,
    pub(super) change: Site,
    pub(super) seq: u64,
}

/// All STEs and CDs.
#[derive(Debug, Default)]
pub(super) struct Streams {
    all: BTreeMap<(What, u64), Structure>,
    by_word: BTreeSet<(u64, What)>,
    e2h: bool,
    /// Counts what changes what memory says.
    pub(super) generation: u64,
    /// Of some of them, more than what memory says now may be held.
    pub(super) changed: bool,
}

impl Streams {
    /// CR2.E2H.
    pub(super) fn e2h(&self) -> bool {
        self.e2h
    }

    /// CR2.E2H was written.
    pub(super) fn set_e2h(&mut self, e2h: bool, config: &Config) {
        self.e2h = e2h;
        self.generation += 1;
        self.all.iter_mut().for_each(|(&(what, _), s)| s.decode(what, config, e2h));
    }

    /// What is at the 64 bytes around `at`.
    pub(super) fn at(&self, at: u64) -> Vec<What> {
        let at = at & !63;
        self.by_word.range((at, What::Ste(0))..(at + 64, What::Ste(0))).map(|&(_, what)| what).collect()
    }

    /// Everything of this name, by address.
    pub(super) fn named(&self, what: What) -> impl Iterator<Item = (u64, &Structure)> {
        self.all.range((what, 0)..=(what, u64::MAX)).map(|(&(_, at), s)| (at, s))
    }

    pub(super) fn get_mut(&mut self, what: What, at: u64) -> Option<&mut Structure> {
        self.all.get_mut(&(what, at & !63))
    }

    /// An STE or CD was fetched. Answers whether it is new.
    pub(super) fn fetched(
        &mut self,
        what: What,
        at: u64,
        words: &[u64; 8],
        seq: u64,
        config: &Config,
    ) -> bool {
        self.generation += 1;
        let stream = self.stream(what.sid()).unwrap_or_default();
        let version = Version { seq, words: *words, site: None };
        if let Some(s) = self.all.get_mut(&(what, at)) {
            s.stream = stream;
            if s.last().words != *words {
                s.push(version);
                self.changed = true;
            }
            s.decode(what, config, self.e2h);
            return false;
        }
        let now = decode(what, &stream, words, config, self.e2h);
        self.by_word.insert((at, what));
        let new = Structure { stream, versions: vec![version], now, reported: false, torn: None };
        self.all.insert((what, at), new);
        true
    }

    /// Memory at `at` is `word` now.
    pub(super) fn wrote(&mut self, what: What, at: u64, word: u64, seq: u64, site: Site, config: &Config) {
        let n = ((at & 63) / 8) as usize;
        let Some(s) = self.all.get_mut(&(what, at & !63)) else { return };
        let mut words = s.last().words;
        if words[n] == word {
            return;
        }
        words[n] = word;
        self.generation += 1;
        self.changed = true;
        s.reported = false;
        s.push(Version { seq, words, site: Some(site) });
        s.decode(what, config, self.e2h);
    }

    /// What the stream of a StreamID is by what memory says now.
    pub(super) fn stream(&self, sid: u32) -> Option<Stream> {
        match self.named(What::Ste(sid)).last()?.1.now {
            Meaning::Ste(stream) => stream,
            Meaning::Cd(_) => None,
        }
    }

    /// The contexts that memory has for a stream's CD.
    pub(super) fn contexts(&self, sid: u32, cd: u32) -> impl Iterator<Item = &Context> {
        self.named(What::Cd(sid, cd)).filter_map(|(_, s)| match &s.now {
            Meaning::Cd(context) => context.as_ref(),
            Meaning::Ste(_) => None,
        })
    }

    /// Whether an older meaning may still be held.
    pub(super) fn stale(&self, what: What, at: u64, config: &Config) -> Option<Stale> {
        let s = self.all.get(&(what, at & !63))?;
        let meaning = |v: &Version| s.meaning(what, &v.words, config, self.e2h);
        let now = meaning(s.last());
        let old = s.versions.iter().position(|v| meaning(v) != now)?;
        let next = s.versions.get(old + 1)?;
        Some(Stale { map: s.versions[old].site, change: next.site?, seq: next.seq })
    }

    /// Whether an SMMU that reads the words in any order could see what was never there.
    pub(super) fn torn(&self, what: What, at: u64, config: &Config) -> bool {
        let Some(s) = self.all.get(&(what, at & !63)) else { return false };
        let meaning = |words: &[u64; 8]| s.meaning(what, words, config, self.e2h);
        let mut values: [Vec<u64>; 8] = Default::default();
        for version in &s.versions {
            for (values, &word) in values.iter_mut().zip(&version.words) {
                if !values.contains(&word) {
                    values.push(word);
                }
            }
        }
        let mixtures: usize = values.iter().map(Vec::len).product();
        if values.iter().filter(|v| v.len() > 1).count() < 2 || mixtures > MAX_MIXTURES {
            return false;
        }
        let seen: Vec<Meaning> = s.versions.iter().map(|v| meaning(&v.words)).collect();
        (0..mixtures).any(|mut n| {
            let words = std::array::from_fn(|i| {
                let choice = n % values[i].len();
                n /= values[i].len();
                values[i][choice]
            });
            !seen.contains(&meaning(&words))
        })
    }

    /// An invalidation that was consumed at `seq` has completed: what memory said before that is not held any more.
    pub(super) fn invalidated(&mut self, matches: impl Fn(What) -> bool, seq: u64) {
        for (_, s) in self.all.iter_mut().filter(|((what, _), _)| matches(*what)) {
            let keep = s.versions.iter().rposition(|v| v.seq <= seq).unwrap_or(0);
            s.versions.drain(..keep);
            if !s.is_changed() {
                s.torn = None;
            }
        }
        self.changed = self.all.values().any(Structure::is_changed);
    }

    /// Whether the STE's present, or any held, version leads to the CD at `at`.
    pub(super) fn points_at(&self, sid: u32, cd: u32, at: u64, held: bool, config: &Config) -> bool {
        let leads = |v: &Version| {
            let Ok(stream) = Stream::decode(&Ste(v.words), config, self.e2h) else { return false };
            // What a level 1 descriptor or stage 2 says is not known here.
            stream.path.has_stage1()
                && (stream.path == Path::Nested
                    || stream.cds.split.is_some()
                    || stream.cds.base + (u64::from(cd) << 6) == at)
        };
        self.named(What::Ste(sid))
            .any(|(_, s)| if held { s.versions.iter().any(leads) } else { leads(s.last()) })
    }

    /// Drops the CDs that no STE leads to any more. Answers their addresses.
    pub(super) fn forget_lost(&mut self, config: &Config) -> Vec<u64> {
        let lost: Vec<(What, u64)> = self
            .all
            .keys()
            .filter(|(what, at)| match *what {
                What::Cd(sid, cd) => !self.points_at(sid, cd, *at, true, config),
                What::Ste(_) => false,
            })
            .copied()
            .collect();
        self.generation += 1;
        for key in &lost {
            self.all.remove(key);
            self.by_word.remove(&(key.1, key.0));
        }
        lost.into_iter().map(|(_, at)| at).collect()
    }

    /// The regimes that a structure has ever been about, and by what tables now: first table and its bytes. `None`: not
    /// to be known, as it is an IPA.
    pub(super) fn roots_of(&self, what: What, at: u64, config: &Config) -> Vec<(Regime, Option<(u64, u64)>)> {
        let Some(s) = self.all.get(&(what, at & !63)) else { return Vec::new() };
        s.versions.iter().flat_map(|v| roots(what, s, &v.words, config, self.e2h)).collect()
    }

    /// The CDs of a stream.
    pub(super) fn cds_of(&self, sid: u32) -> Vec<(What, u64)> {
        let range = (What::Cd(sid, 0), 0)..=(What::Cd(sid, u32::MAX), u64::MAX);
        self.all.range(range).map(|(&key, _)| key).collect()
    }

    /// What a structure is about now.
    pub(super) fn current_roots(
        &self,
        what: What,
        at: u64,
        config: &Config,
    ) -> Vec<(Regime, Option<(u64, u64)>)> {
        let s = self.all.get(&(what, at & !63));
        s.map_or_else(Vec::new, |s| roots(what, s, &s.last().words, config, self.e2h))
    }

    /// Whether what memory says leads from any stream to the first table at `page` for `regime`.
    pub(super) fn leads_to(&self, regime: Regime, page: u64, config: &Config) -> bool {
        self.all.iter().any(|(&(what, at), s)| {
            let reachable = match what {
                What::Ste(_) => true,
                What::Cd(sid, cd) => self.points_at(sid, cd, at, false, config),
            };
            reachable
                && roots(what, s, &s.last().words, config, self.e2h)
                    .iter()
                    .any(|&(of, table)| of == regime && holds(table, page))
        })
    }
}

/// Whether a first table includes the page at `page`.
pub(super) fn holds(table: Option<(u64, u64)>, page: u64) -> bool {
    table.is_none_or(|(first, bytes)| page.wrapping_sub(first) < bytes)
}

/// What tables a structure leads to.
fn roots(
    what: What,
    s: &Structure,
    words: &[u64; 8],
    config: &Config,
    e2h: bool,
) -> Vec<(Regime, Option<(u64, u64)>)> {
    let whole = |ttb: u64, bytes: u64| (ttb & !0xfff, bytes.max(0x1000));
    match what {
        What::Ste(_) => match Stream::decode(&Ste(*words), config, e2h) {
            Ok(stream) if stream.path.has_stage2() => {
                let t = &stream.stage2.tables;
                let regime = Regime { world: World::NsEl1Stage2, vmid: stream.vmid, asid: 0 };
                vec![(regime, Some(whole(t.ttb, 16 * t.granule.bytes())))]
            }
            _ => Vec::new(),
        },
        What::Cd(..) => match Context::decode(&Cd(*words), &s.stream, config) {
            Ok(c) => {
                let regime = Regime { world: s.stream.world, vmid: s.stream.vmid, asid: c.asid };
                let known = s.stream.path != Path::Nested;
                let table = |t: &pgtable::Stage1| known.then(|| whole(t.ttb, t.granule.bytes()));
                let mut roots = Vec::new();
                if !c.ranges.epd0 {
                    roots.push((regime, table(&c.lower)));
                }
                if !c.ranges.epd1 {
                    roots.push((regime, table(&c.upper)));
                }
                roots
            }
            Err(_) => Vec::new(),
        },
    }
}
