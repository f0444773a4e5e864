//! The arguments of a script's command.

use std::error::Error;
use std::str::FromStr;

use goldenscript::ArgumentConsumer;

pub(crate) struct Args<'a>(pub(crate) ArgumentConsumer<'a>);

impl Args<'_> {
    pub(crate) fn key<T: FromStr<Err: Error + 'static>>(
        &mut self,
        key: &str,
        default: T,
    ) -> Result<T, Box<dyn Error>> {
        Ok(self.0.take_key(key).map(str::parse).transpose()?.unwrap_or(default))
    }

    pub(crate) fn next<T: FromStr<Err: Error + 'static>>(&mut self) -> Result<T, Box<dyn Error>> {
        Ok(self.0.next_pos().ok_or("an argument is missing")?.parse()?)
    }
}
