//! Image names, and which packages they stand for.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The images that [`crate::Store`] knows. The first Debian one named by [`DEFAULT`] is what `run` boots.
pub const NAMES: [&str; 4] = ["debian-6.1", "debian-6.12", "debian-newest", "lab"];

/// The image that is booted when none is named.
pub const DEFAULT: &str = "debian-6.12";

/// Debian's arm64 kernel flavours; `arm64-16k` has 16 KiB pages.
pub const FLAVOURS: [&str; 4] = ["arm64", "cloud-arm64", "rt-arm64", "arm64-16k"];

/// Which line of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Series {
    /// Linux 6.1, of Debian 12 (bookworm).
    V6_1,
    /// Linux 6.12, of Debian 13 (trixie).
    V6_12,
    /// Whatever is newest in Debian's development branch (sid).
    Newest,
    /// The lab kernel, built here from Debian's newest source.
    Lab,
}

/// An image's name: a series and a flavour, written `debian-6.12` or `debian-6.12:cloud-arm64`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// Which line of kernels.
    pub series: Series,
    /// One of [`FLAVOURS`].
    pub flavour: String,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (series, flavour) = text.split_once(':').unwrap_or((text, FLAVOURS[0]));
        let series = match series {
            "debian-6.1" => Series::V6_1,
            "debian-6.12" => Series::V6_12,
            "debian-newest" => Series::Newest,
            "lab" => Series::Lab,
            _ => return Err(Error::UnknownImage(text.to_string())),
        };
        let known = if series == Series::Lab { &FLAVOURS[..1] } else { &FLAVOURS[..] };
        if !known.contains(&flavour) {
            return Err(Error::UnknownFlavour(flavour.to_string()));
        }
        Ok(Self { series, flavour: flavour.to_string() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.series {
            Series::V6_1 => "debian-6.1",
            Series::V6_12 => "debian-6.12",
            Series::Newest => "debian-newest",
            Series::Lab => "lab",
        })?;
        if self.flavour != FLAVOURS[0] { write!(f, ":{}", self.flavour) } else { Ok(()) }
    }
}

impl Series {
    /// The suites that carry this series: the main archive's and, if there is one, the security archive's.
    pub fn suites(self) -> (&'static str, Option<&'static str>) {
        match self {
            Series::V6_1 => ("bookworm", Some("bookworm-security")),
            Series::V6_12 => ("trixie", Some("trixie-security")),
            Series::Newest | Series::Lab => ("sid", None),
        }
    }

    /// Whether a kernel package's version belongs to this series.
    fn has(self, version: &str) -> bool {
        match self {
            Series::V6_1 => version.starts_with("6.1."),
            Series::V6_12 => version.starts_with("6.12."),
            Series::Newest | Series::Lab => true,
        }
    }
}

impl Name {
    /// The name as a file name: no colon.
    pub fn file_name(&self) -> String {
        self.to_string().replace(':', "-")
    }

    /// The packages of the newest kernel ABI among `available` package names: the first holds vmlinuz, the others what
    /// it lacks. ABI names change with every update, hence a pattern.
    ///
    /// Up to 7.0 one `linux-image-ABI-FLAVOUR` has it all. After that the image package is empty, and vmlinuz is in
    /// `linux-binary-…`, the modules in `linux-modules-…`, System.map and the configuration in `linux-base-…`.
    pub fn packages<'a>(&self, available: impl Iterator<Item = &'a str>) -> Option<Kernel> {
        let mut newest: Option<Kernel> = None;
        for package in available {
            let Some((split, abi)) = self.abi(package) else { continue };
            let better = newest.as_ref().is_none_or(|k| match compare_versions(abi, &k.abi) {
                Ordering::Equal => split,
                order => order == Ordering::Greater,
            });
            if better {
                let with = |kind: &str| format!("linux-{kind}-{abi}-{}", self.flavour);
                let packages = if split {
                    vec![with("binary"), with("modules"), with("base")]
                } else {
                    vec![with("image")]
                };
                newest = Some(Kernel { abi: abi.to_string(), packages });
            }
        }
        newest
    }

    /// The ABI of a package that holds a kernel of this series and flavour, and whether it is of the split kind.
    fn abi<'a>(&self, package: &'a str) -> Option<(bool, &'a str)> {
        let (split, rest) = match package.strip_prefix("linux-image-") {
            Some(rest) => (false, rest),
            None => (true, package.strip_prefix("linux-binary-")?),
        };
        let abi = rest.strip_suffix(self.flavour.as_str())?.strip_suffix('-')?;
        (is_abi(abi) && self.series.has(abi)).then_some((split, abi))
    }
}

/// What [`Name::packages`] picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The version part of the package names, such as `6.1.0-47` or `6.12.115+deb13`.
    pub abi: String,
    /// Package names, the one with vmlinuz first.
    pub packages: Vec<String>,
}

/// `6.1.0-47`, `6.12.115+deb13`, `7.2.13+deb14`: not `6.12` (a meta-package), not `6.1.0-47-cloud`.
fn is_abi(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (version, suffix) = text.split_at(end);
    let numbers = version.split('.').filter(|n| !n.is_empty()).count();
    let suffix_fits = match suffix.chars().next() {
        None => true,
        Some('-') => suffix.len() > 1 && suffix[1..].chars().all(|c| c.is_ascii_digit()),
        Some('+' | '~') => {
            suffix[1..].chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '~'))
        }
        Some(_) => false,
    };
    numbers >= 3 && !version.ends_with('.') && suffix_fits
}

/// Debian's order of upstream versions (deb-version(7)): runs of digits by value, other runs with letters before other
/// characters and `~` before everything, the end included.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let weight = |c: Option<&u8>| match c {
        None => 0,
        Some(b'0'..=b'9') => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    while !a.is_empty() || !b.is_empty() {
        while a.first().is_some_and(|c| !c.is_ascii_digit()) || b.first().is_some_and(|c| !c.is_ascii_digit())
        {
            match weight(a.first()).cmp(&weight(b.first())) {
                Ordering::Equal => {}
                order => return order,
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let ((x, rest_a), (y, rest_b)) = (a.split_at(digits(a)), b.split_at(digits(b)));
        let value = |run: &[u8]| run.iter().skip_while(|c| **c == b'0').copied().collect::<Vec<u8>>();
        let (x, y) = (value(x), value(y));
        match x.len().cmp(&y.len()).then_with(|| x.cmp(&y)) {
            Ordering::Equal => {}
            order => return order,
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(name: &str, available: &[&str]) -> Option<Kernel> {
        name.parse::<Name>().unwrap().packages(available.iter().copied())
    }

    #[test]
    fn names_parse_and_print() {
        for name in ["debian-6.1", "debian-6.12", "debian-newest:rt-arm64", "debian-6.12:arm64-16k", "lab"] {
            assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
        }
        assert_eq!("debian-6.12:arm64".parse::<Name>().unwrap().to_string(), "debian-6.12");
        assert!(matches!("debian-5.10".parse::<Name>(), Err(Error::UnknownImage(_))));
        assert!(matches!("debian-6.1:amd64".parse::<Name>(), Err(Error::UnknownFlavour(_))));
        assert!(matches!("lab:cloud-arm64".parse::<Name>(), Err(Error::UnknownFlavour(_))));
        assert!(DEFAULT.parse::<Name>().is_ok());
    }

    #[test]
    fn the_newest_abi_of_the_series_and_flavour_is_picked() {
        let available = [
            "linux-image-6.1.0-9-arm64",
            "linux-image-6.1.0-47-arm64-unsigned",
            "linux-image-6.1.0-46-arm64",
            "linux-image-6.1.0-48-cloud-arm64",
            "linux-image-6.1.0-46-arm64-dbg",
            "linux-image-6.12-arm64",
            "linux-image-6.12.9+deb13-arm64",
            "linux-image-6.12.115+deb13-arm64",
            "linux-image-6.12.115+deb13-arm64-16k",
            "linux-image-arm64",
            "linux-headers-6.12.200+deb13-arm64",
        ];
        let image = |name: &str| pick(name, &available).unwrap().packages;
        assert_eq!(image("debian-6.1"), ["linux-image-6.1.0-46-arm64"]);
        assert_eq!(image("debian-6.1:cloud-arm64"), ["linux-image-6.1.0-48-cloud-arm64"]);
        assert_eq!(image("debian-6.12"), ["linux-image-6.12.115+deb13-arm64"]);
        assert_eq!(image("debian-6.12:arm64-16k"), ["linux-image-6.12.115+deb13-arm64-16k"]);
        assert_eq!(pick("debian-6.12:rt-arm64", &available), None);
    }

    #[test]
    fn from_seven_on_the_kernel_is_split() {
        let available = [
            "linux-image-7.2.13+deb14-arm64",
            "linux-binary-7.2.13+deb14-arm64",
            "linux-binary-unsigned-7.2.13+deb14-arm64",
            "linux-image-6.19.4-arm64",
        ];
        let kernel = pick("debian-newest", &available).unwrap();
        assert_eq!(kernel.abi, "7.2.13+deb14");
        assert_eq!(
            kernel.packages,
            [
                "linux-binary-7.2.13+deb14-arm64",
                "linux-modules-7.2.13+deb14-arm64",
                "linux-base-7.2.13+deb14-arm64"
            ]
        );
        assert_eq!(pick("debian-newest", &available[3..]).unwrap().packages, ["linux-image-6.19.4-arm64"]);
    }

    #[test]
    fn versions_compare_as_debians() {
        let ordered = [
            "6.1.0-9",
            "6.1.0-10",
            "6.12.9+deb13",
            "6.12.10",
            "6.12.10+deb13",
            "6.12.10+deb14",
            "7.0~rc1",
            "7.0",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(compare_versions(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare_versions(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare_versions("6.01", "6.1"), Ordering::Equal);
    }
}
