//! `smmulab image`: list, fetch and build guests.

use std::io::Write;

use anyhow::{Context, Result};
use guest_images::{Name, Progress, Series, Store};

use crate::cli::ImageCommand;

/// Carries out the command.
///
/// # Errors
/// When an image is unknown or cannot be fetched or built; the message says what to do.
pub fn run(command: ImageCommand) -> Result<()> {
    let store = Store::open()?;
    match command {
        ImageCommand::List => {
            let header = ["IMAGE", "WHAT", "CACHED"].map(String::from);
            let rows = store.list().into_iter().map(|listed| {
                let cached = listed.cached.map_or_else(|| "-".to_string(), |image| image.release);
                [listed.name.to_string(), listed.description.to_string(), cached]
            });
            print(&table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()))?;
        }
        ImageCommand::Fetch { names, refresh } => {
            for name in names {
                let image = store.fetch(&name.parse()?, refresh, Progress::auto())?;
                print(&format!("{name}: Linux {}\n", image.release))?;
            }
        }
        ImageCommand::Tools { name } => {
            let image = store.fetch(&name.parse()?, false, Progress::auto())?;
            let tools = store.tools(&image, Progress::auto())?;
            print(&format!("{name}: tools for Linux {} in {}\n", image.release, tools.display()))?;
        }
        ImageCommand::Build { name } => {
            let name: Name = name.parse()?;
            anyhow::ensure!(
                name.series == Series::Lab,
                "only `lab` is built; `image fetch {name}` fetches it"
            );
            let image = store.build_lab(true, Progress::auto())?;
            print(&format!("{name}: Linux {} in {}\n", image.release, image.kernel.display()))?;
        }
    }
    Ok(())
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}

/// Columns as wide as what is in them.
fn table(rows: &[[String; 3]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    rows.iter().map(|[a, b, c]| format!("{a:first$}  {b:second$}  {c}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        assert_eq!(table(&[row(["A", "B", "C"]), row(["long", "x", "-"])]), "A     B  C\nlong  x  -\n");
    }
}
