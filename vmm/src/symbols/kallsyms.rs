//! The table of names that a Linux kernel has of itself (CONFIG_KALLSYMS), found in its image or in the guest's memory.
//!
//! Nothing says where it is. But its parts (scripts/kallsyms.c) describe each other: 256 strings, of which those of the
//! digits are the digits; behind them, the index of each; before them, names made of such strings, with a count before and
//! a marker for every 256th behind; and the offsets of the symbols from the first, before all of it (Linux up to 6.3) or
//! behind.

/// How a name begins in the table: its type, as `nm` has it.
pub(super) struct Name {
    /// From the first symbol, bytes.
    pub(super) offset: u64,
    /// Letter of its type.
    pub(super) kind: u8,
    /// The name.
    pub(super) text: String,
}

/// Fewer or more names than a kernel has.
const COUNT: std::ops::Range<usize> = 1000..1 << 19;
/// Tables that are looked at, and names that are passed over to find where those of a table begin: a guest may have put
/// anything there.
const TRIES: usize = 8;
const STEPS: usize = 1 << 23;
/// KSYM_NAME_LEN: no name, and no part of one, is longer.
const LONGEST: usize = 512;
/// The table of the strings has each digit's.
const DIGITS: &[u8] = b"\x000\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Finds the table in what may be a kernel. What is none may be anything.
pub(super) fn find(image: &[u8]) -> Option<Vec<Name>> {
    let (mut from, mut tries) = (0, 0);
    while tries < TRIES {
        let at = from + position(image.get(from..)?, DIGITS)?;
        // The parts are aligned to 8 bytes, and of late to 4.
        if let Some(tokens) = [8, 4].into_iter().find_map(|unit| Tokens::at(image, at + 1, unit)) {
            tries += 1;
            if let Some(names) = tokens.names(image) {
                return Some(names);
            }
        }
        from = at + 1;
    }
    None
}

fn position(image: &[u8], text: &[u8]) -> Option<usize> {
    // The second byte is rarer than the first.
    let mut from = 1;
    loop {
        from += image.get(from..)?.iter().position(|&byte| byte == text[1])?;
        if image.get(from - 1..)?.starts_with(text) {
            return Some(from - 1);
        }
        from += 1;
    }
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The 256 strings that names are made of.
struct Tokens<'a> {
    text: Vec<&'a [u8]>,
    start: usize,
    /// Behind their index.
    end: usize,
    /// What the parts are aligned to.
    unit: usize,
}

impl<'a> Tokens<'a> {
    /// The table in which the string of the digit 0 is at `zero`, if its index is behind it.
    fn at(image: &'a [u8], zero: usize, unit: usize) -> Option<Self> {
        let mut start = zero;
        for _ in 0..usize::from(b'0') {
            let before = image.get(..start - 1)?;
            let length = before.iter().rev().take(LONGEST).position(|&byte| byte == 0)?;
            start = start - 1 - length;
            if start == 0 {
                return None;
            }
        }
        // What is before need not end with a zero.
        start = start.next_multiple_of(unit);
        let (mut text, mut at) = (Vec::with_capacity(256), start);
        for _ in 0..256 {
            let rest = image.get(at..)?;
            let length = rest.iter().take(LONGEST).position(|&byte| byte == 0)?;
            text.push(&rest[..length]);
            at += length + 1;
        }
        let index = at.next_multiple_of(unit);
        let mut offset = 0;
        for (n, text) in text.iter().enumerate() {
            let said = image.get(index + 2 * n..index + 2 * n + 2)?;
            if usize::from(u16::from_le_bytes([said[0], said[1]])) != offset {
                return None;
            }
            offset += text.len() + 1;
        }
        Some(Self { text, start, end: index + 512, unit })
    }

    /// The names that lie before.
    fn names(&self, image: &[u8]) -> Option<Vec<Name>> {
        // The nearest count that fits.
        let (unit, mut at, mut steps) = (self.unit, self.start, 0);
        while at >= unit && steps < STEPS {
            at -= unit;
            let Some(count) = u32_at(image, at).map(|count| count as usize) else { continue };
            if COUNT.contains(&count)
                && match unit {
                    // The first marker, from the end of the markers.
                    4 => u32_at(image, self.start.wrapping_sub(4 * count.div_ceil(256))) == Some(0),
                    _ => u32_at(image, at + 4) == Some(0),
                }
                && let Some(names) = self.expand(image, at + unit, count, &mut steps)
            {
                let offsets = offsets(image, self.end, count).or_else(|| {
                    offsets(image, at.checked_sub(8 + (4 * count).next_multiple_of(unit))?, count)
                })?;
                let name = |(offset, (kind, text))| Name { offset, kind, text };
                return Some(offsets.into_iter().zip(names).map(name).collect());
            }
        }
        None
    }

    /// `count` names, if markers for them follow.
    fn expand(
        &self,
        image: &[u8],
        start: usize,
        count: usize,
        steps: &mut usize,
    ) -> Option<Vec<(u8, String)>> {
        let (mut at, mut ends) = (start, Vec::new());
        for n in 0..count {
            *steps += 1;
            if n & 0xff == 0 {
                ends.push(at - start);
            }
            at = compressed(image.get(..self.start)?, at)?.1;
        }
        let markers = at.next_multiple_of(self.unit);
        let fits = |(n, &end): (usize, &usize)| u32_at(image, markers + 4 * n) == Some(end as u32);
        if !ends.iter().enumerate().all(fits) {
            return None;
        }
        at = start;
        let mut names = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, next) = compressed(image, at)?;
            at = next;
            let text: Vec<u8> =
                name.iter().flat_map(|&token| self.text[usize::from(token)]).copied().take(LONGEST).collect();
            let (&kind, text) = text.split_first()?;
            names.push((kind, String::from_utf8_lossy(text).into_owned()));
        }
        Some(names)
    }
}

/// The tokens of a name, and where the next one is.
fn compressed(image: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (low, high) = (*image.get(at)?, image.get(at + 1).copied().unwrap_or(0));
    let (length, skip) = match low & 0x80 {
        0 => (usize::from(low), 1),
        _ => (usize::from(low & 0x7f) | usize::from(high) << 7, 2),
    };
    let name = image.get(at + skip..at + skip + length).filter(|name| !name.is_empty())?;
    Some((name, at + skip + length))
}

/// Ascending offsets from the first symbol, or from where they are themselves.
fn offsets(image: &[u8], at: usize, count: usize) -> Option<Vec<u64>> {
    let word = |n: usize| u32_at(image, at + 4 * n);
    let plain: Option<Vec<u64>> = (0..count).map(|n| word(n).map(u64::from)).collect();
    let plain = plain?;
    if plain[0] == 0 && plain.is_sorted() && plain[count - 1] != 0 {
        return Some(plain);
    }
    let first = i64::from(plain[0] as u32 as i32);
    let own = |(n, &offset): (usize, &u64)| i64::from(offset as u32 as i32) + 4 * n as i64 - first;
    let own: Vec<i64> = plain.iter().enumerate().map(own).collect();
    let valid = first < 0 && own.is_sorted() && own[count - 1] != 0;
    valid.then(|| own.into_iter().map(|offset| offset as u64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with a table as scripts/kallsyms.c writes it, in the order since 6.4 or before, with its parts aligned to
    /// this, and the names in it.
    fn kernel(new: bool, unit: usize) -> (Vec<u8>, Vec<String>) {
        // Every character is a token; 0xf0 is one of three.
        let token = |n: usize| match n {
            0xf0 => b"arm_".to_vec(),
            0x20..0x7f if n != usize::from(b'\\') => vec![n as u8],
            _ => Vec::new(),
        };
        let names: Vec<String> = (0..1500).map(|n| format!("function_{n:04}")).collect();
        let mut compressed = Vec::new();
        let mut markers = Vec::new();
        for (n, name) in names.iter().enumerate() {
            if n % 256 == 0 {
                markers.extend((compressed.len() as u32).to_le_bytes());
            }
            compressed.push(name.len() as u8 + 2);
            compressed.extend([b'T', 0xf0]);
            compressed.extend(name.bytes());
        }
        // By the symbols' distance from the first, or of late from where it says so.
        let offset = |n: u32| if unit == 4 { (n * 0x40).wrapping_sub(0x10_0000 + 4 * n) } else { n * 0x40 };
        let offsets: Vec<u8> = (0..1500u32).flat_map(|n| offset(n).to_le_bytes()).collect();
        // What has a place by name, and may end with any byte.
        let order: Vec<u8> = (0..4504).map(|n| if n % 3 == 1 { 0 } else { 0x77 }).collect();
        let tokens: Vec<u8> = (0..256).flat_map(|n| [token(n), vec![0]].concat()).collect();
        let lengths = (0..256).scan(0u16, |at, n| {
            let own = *at;
            *at += token(n).len() as u16 + 1;
            Some(own)
        });
        let index: Vec<u8> = lengths.flat_map(u16::to_le_bytes).collect();
        let mut image = vec![0xaau8; 0x1000];
        let mut put = |bytes: &[u8]| {
            image.extend(bytes);
            image.resize(image.len().next_multiple_of(unit), 0);
        };
        let count = 1500u32.to_le_bytes();
        let base = 0xffff_8000_8000_0000u64.to_le_bytes();
        match new {
            true => [&count[..], &compressed, &markers, &tokens, &index, &offsets, &base, &[]].map(&mut put),
            false => {
                [&offsets[..], &base, &count, &compressed, &markers, &order, &tokens, &index].map(&mut put)
            }
        };
        image.extend([0x55; 64]);
        (image, names.iter().map(|name| format!("arm_{name}")).collect())
    }

    #[test]
    fn names_are_found_wherever_they_are() {
        for (new, unit) in [(true, 8), (true, 4), (false, 8)] {
            let (image, expected) = kernel(new, unit);
            let names = find(&image).unwrap();
            assert_eq!(names.iter().map(|n| n.text.clone()).collect::<Vec<_>>(), expected);
            assert!(names.iter().enumerate().all(|(n, name)| name.offset == n as u64 * 0x40));
            assert!(names.iter().all(|name| name.kind == b'T'));
        }
    }

    #[test]
    fn what_is_damaged_is_no_table() {
        let (image, _) = kernel(true, 4);
        assert!(find(&image[..0x2000]).is_none());
        for at in (0x1000..image.len()).step_by(37) {
            let mut image = image.clone();
            image[at] ^= 0x55;
            // A wrong letter in a name is a name; anything else is nothing. Neither panics.
            find(&image);
        }
    }
}
