//! `smmulab image`: list, fetch and build guests.

use anyhow::Result;
use guest_images::{Name, Progress, Series, Store};

use crate::cli::ImageCommand;
use crate::say::{out, outln};

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
            out(table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
        }
        ImageCommand::Fetch { names, refresh } => {
            for name in names {
                let image = store.fetch(&name.parse()?, refresh, Progress::auto())?;
                outln!("{name}: Linux {}", image.release);
            }
        }
        ImageCommand::Tools { name } => {
            let image = store.fetch(&name.parse()?, false, Progress::auto())?;
            let tools = store.tools(&image, Progress::auto())?;
            outln!("{name}: tools for Linux {} in {}", image.release, tools.display());
        }
        ImageCommand::Build { name } => {
            let name: Name = name.parse()?;
            anyhow::ensure!(
                name.series == Series::Lab,
                "only `lab` is built; `image fetch {name}` fetches it"
            );
            let image = store.build_lab(true, Progress::auto())?;
            outln!("{name}: Linux {} in {}", image.release, image.kernel.display());
        }
    }
    Ok(())
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
