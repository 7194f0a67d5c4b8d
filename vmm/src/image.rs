//! `smmulab image`: list, fetch and build guests.

use anyhow::Result;

use crate::cli::ImageCommand;

/// Carries out the command.
///
/// # Errors
/// When an image is unknown or cannot be fetched or built; the message says what to do.
pub fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::List => print!("{}", guest_images::list()?),
        ImageCommand::Fetch { names } => {
            for name in names {
                let image = guest_images::fetch(&name)?;
                println!("{name}: {}", image.release);
            }
        }
        ImageCommand::Build { name } => {
            let image = guest_images::build(&name)?;
            println!("{name}: {} in {}", image.release, image.kernel.display());
        }
    }
    Ok(())
}
