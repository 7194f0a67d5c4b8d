//! Scripts as scenario files write them.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::options::Span;
use crate::script::{Step, Until};
use crate::symbols::Symbols;

/// One step: `hold = ["cpu1"]`, `until = "cpu0 leaves dma_unmap_page_attrs"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Who stands still.
    #[serde(default)]
    pub hold: Vec<Actor>,
    /// Until what.
    pub until: String,
}

/// What the lines mean in a guest whose symbols these are.
///
/// # Errors
/// When a line says nothing that a script can wait for, or names an unknown symbol: one line that says which.
pub fn steps(lines: &[Line], symbols: &Symbols) -> Result<Vec<Step>> {
    let step = |(number, line): (usize, &Line)| {
        let until = until(&line.until, symbols)
            .with_context(|| format!("script, step {}: `{}`", number + 1, line.until))?;
        Ok(Step { hold: line.hold.clone(), until })
    };
    lines.iter().enumerate().map(step).collect()
}

/// What one line waits for.
///
/// # Errors
/// As [`steps`].
pub(super) fn until(text: &str, symbols: &Symbols) -> Result<Until> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let cpu = |who: &str| match who.parse() {
        Ok(Actor::Cpu(cpu)) => Ok(cpu),
        _ => Err(anyhow!("`{who}` is no vCPU")),
    };
    let number = |text: &str| text.parse::<u64>().ok().filter(|&n| n > 0).context("it counts from 1");
    Ok(match words[..] {
        [who, "at", place] => Until::Reaches { cpu: cpu(who)?, pc: address(place, symbols)?, times: 1 },
        [who, "at", place, "times", n] => {
            Until::Reaches { cpu: cpu(who)?, pc: address(place, symbols)?, times: number(n)? }
        }
        [who, "leaves", place] => Until::Leaves { cpu: cpu(who)?, pc: address(place, symbols)? },
        [who, "does", n] => Until::Does { who: who.parse()?, count: number(n)? },
        [time] => Until::Passes(time.parse::<Span>().map_err(|e| anyhow!(e))?.0),
        _ => {
            bail!("it is none of `cpuN at SYMBOL [times N]`, `cpuN leaves SYMBOL`, `ACTOR does N` or a time")
        }
    })
}

/// `SYMBOL`, `SYMBOL+0xOFFSET` or a bare address.
pub(super) fn address(text: &str, symbols: &Symbols) -> Result<u64> {
    let hex = |text: &str| text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if let Some(address) = hex(text) {
        return Ok(address);
    }
    let (name, offset) = match text.split_once('+') {
        Some((name, offset)) => (name, hex(offset).context("an offset is written as 0x…")?),
        None => (text, 0),
    };
    ensure!(!symbols.is_empty(), "the guest's symbols are not known: give its System.map as `symbols`");
    let start = symbols.find(name).with_context(|| format!("the guest has no function `{name}`"))?;
    start.checked_add(offset).context("that is no address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_is_waited_for() {
        let symbols = Symbols::parse("1000 T one\n2000 T two\n");
        let parse = |text: &str| until(text, &symbols).unwrap();
        assert_eq!(parse("cpu1 at one+0x10"), Until::Reaches { cpu: 1, pc: 0x1010, times: 1 });
        assert_eq!(parse("cpu0 at 0x44 times 3"), Until::Reaches { cpu: 0, pc: 0x44, times: 3 });
        assert_eq!(parse("cpu0 leaves two"), Until::Leaves { cpu: 0, pc: 0x2000 });
        assert_eq!(parse("its does 2"), Until::Does { who: Actor::Its, count: 2 });
        assert_eq!(parse("2us"), Until::Passes(2000));
        for bad in
            ["", "cpu1 at three", "its at one", "cpu0 does 0", "soon", "cpu0 at one+4", "cpu0 goes away now"]
        {
            assert!(until(bad, &symbols).is_err(), "{bad}");
        }
        let line = Line { hold: vec![], until: "cpu0 at three".into() };
        let error = format!("{:#}", steps(&[line], &symbols).unwrap_err());
        assert!(error.contains("step 1") && error.contains("three"), "{error}");
    }
}
