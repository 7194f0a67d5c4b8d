//! What the caches know of a transaction when it arrives: the answer, or its route and its entry of the IOTLB.

use super::route::Known;
use super::txn::Txn;
use super::{context_key, to, translation, without_top_byte};
use crate::cache::Mapping;
use crate::smmu::Smmu;
use crate::transaction::{Transaction, Translation};

impl Smmu {
    /// Goes up when an entry of the STEs, the CDs or the IOTLB is no longer what a look-up would find.
    #[inline]
    fn changes(&self) -> u64 {
        self.streams.changes() + self.contexts.changes() + self.tlb.changes()
    }

    /// The short way for a transaction that the caches know all about. Anything else goes the long way.
    #[inline(always)]
    pub(super) fn hit(&mut self, t: &Transaction) -> Option<Translation> {
        let answer = self.answers.get(t, self.changes())?;
        let [stream, context, entry] = answer.entries();
        let translation = to(answer.output(), answer.shift(), answer.attrs(), t.address);
        self.streams.touch(stream);
        self.contexts.touch(context);
        self.tlb.touch(entry);
        Some(translation)
    }

    /// The route of a transaction of stage 1 whose STE and CD are cached.
    #[inline(always)]
    pub(super) fn known(&mut self, t: &Transaction) -> Option<Known> {
        let when = self.streams.changes() + self.contexts.changes();
        let route = match self.routes.find(t, when) {
            Some(route) => route,
            None => self.find_route(t, when)?,
        };
        let (at, form) = self.routes.at(route);
        self.streams.touch(at.stream as usize);
        self.contexts.touch(at.context as usize);
        let (needs, half) = form.sort(t);
        Some(Known { route, needs, input: without_top_byte(t.address), half })
    }

    /// The entry of the IOTLB for a transaction.
    #[inline(always)]
    pub(super) fn look_up(&self, known: &Known) -> Option<usize> {
        if self.tlb.is_disabled() {
            return None;
        }
        let (at, form) = self.routes.at(known.route);
        self.tlb.lookup(at.regime(form), known.input)
    }

    /// The IOTLB has an entry.
    #[inline(never)]
    pub(super) fn found(&mut self, t: &Transaction, known: &Known, entry: usize) -> Option<Translation> {
        let changes = self.changes();
        self.tlb.touch(entry);
        let mapping = self.tlb.at(entry);
        if !mapping.permissions.contains(known.needs) {
            return None;
        }
        let Mapping { output, shift, attrs, .. } = *mapping;
        let (at, _) = self.routes.at(known.route);
        self.answers.add(t, changes, output, shift, attrs, [at.stream as usize, at.context as usize, entry]);
        Some(translation(mapping, t.address))
    }

    /// The route of a transaction of stage 1 whose STE and CD are cached, made of those.
    #[inline(never)]
    fn find_route(&mut self, t: &Transaction, when: u64) -> Option<usize> {
        let stream_at = self.streams.find(&u64::from(t.sid))?;
        self.streams.touch(stream_at);
        let stream = self.streams.at(stream_at);
        let (cd, with_stage1) = stream.substream(t.ssid).ok()?;
        if !with_stage1 {
            return None;
        }
        let context_at = self.contexts.find(&context_key(t.sid, cd))?;
        self.contexts.touch(context_at);
        let context = self.contexts.at(context_at);
        self.routes.add(t, when, cd, (stream_at, stream), (context_at, context), &self.config)
    }

    /// Gives a transaction what is known of it.
    pub(super) fn configure(&self, txn: &mut Txn, known: &Known) {
        let (route, _) = self.routes.at(known.route);
        txn.stream = *self.streams.at(route.stream as usize);
        txn.context = *self.contexts.at(route.context as usize);
        txn.t = txn.stream.overrides.access(&txn.incoming);
        txn.cd = route.cd;
    }
}
