//! clamd's protocol, as clamd(8) has it: commands that end with a zero byte, each on a connection of its own.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Bytes of one part of a file.
const PART: usize = 128 << 10;
/// Bytes of an answer.
const ANSWER: u64 = 4096;
/// Until clamd takes or gives something: it scans while the connection is silent, for 2 minutes at most by default.
const PATIENCE: Duration = Duration::from_secs(150);
/// What clamd calls files that are beyond its limits, where it is told to report them: it has not scanned all of them.
const LIMITS: &str = "Heuristics.Limits.Exceeded";

/// A clamd.
#[derive(Debug)]
pub(super) struct Clamd {
    socket: PathBuf,
}

/// What clamd says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is in order.
    Nothing,
    /// It has what this signature describes.
    Signature(String),
    /// It was not scanned, or not all of it: why not.
    Unscanned(String),
}

impl Clamd {
    /// The clamd that listens there.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Its version and that of its signatures, as `ClamAV 1.4.3/27500/Wed Jan 1 00:00:00 2026`.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn version(&self) -> Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(b"zVERSION\0").context("asking clamd for its version")?;
        let version = answer(&mut stream)?;
        match version.starts_with("ClamAV ") {
            true => Ok(version),
            false => bail!("what listens at {} is no clamd: it answers {version:?}", self.socket.display()),
        }
    }

    /// Has it scan at most `most` bytes of `file`; gives how many it was sent, too.
    ///
    /// # Errors
    /// The file cannot be read, or clamd does not answer.
    pub(super) fn scan(&self, file: &mut impl Read, most: u64) -> Result<(Found, u64)> {
        let mut stream = self.connect()?;
        let (mut part, mut sent) = (vec![0; PART], 0);
        let mut said = stream.write_all(b"zINSTREAM\0");
        while said.is_ok() {
            let len = match file.read(&mut part) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading it"),
            };
            sent += len as u64;
            if sent > most {
                return Ok((Found::Unscanned(format!("it is larger than {} MiB", most >> 20)), most));
            }
            said = stream.write_all(&(len as u32).to_be_bytes()).and_then(|()| stream.write_all(&part[..len]));
        }
        // It hangs up on a file that is too large for it, but says so first.
        let said = said.and_then(|()| stream.write_all(&[0; 4]));
        match (answer(&mut stream), said) {
            (Ok(answer), _) => Ok((found(&answer), sent)),
            (Err(_), Err(error)) => Err(error).context("sending it to clamd"),
            (Err(error), Ok(())) => Err(error),
        }
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket).with_context(|| {
            format!("connecting to clamd at {}: is it running, and may the agent connect?", self.socket.display())
        })?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        stream.set_write_timeout(Some(PATIENCE)).context("setting a time limit")?;
        Ok(stream)
    }
}

fn answer(stream: &mut UnixStream) -> Result<String> {
    let mut answer = Vec::new();
    let read = stream.take(ANSWER).read_to_end(&mut answer);
    // A connection that clamd has reset may still have had an answer.
    if answer.is_empty() {
        read.context("waiting for clamd's answer")?;
        bail!("clamd has hung up without an answer");
    }
    let answer = answer.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(answer).trim().to_owned())
}

/// `stream: OK`, `stream: NAME FOUND`, `… ERROR`.
fn found(answer: &str) -> Found {
    let said = answer.strip_prefix("stream: ").unwrap_or(answer);
    if said == "OK" && answer != said {
        return Found::Nothing;
    }
    match said.strip_suffix(" FOUND") {
        Some(name) if name.starts_with(LIMITS) => Found::Unscanned(format!("it is beyond clamd's limits: {name}")),
        Some(name) => Found::Signature(name.to_owned()),
        None => Found::Unscanned(format!("clamd: {}", said.trim_end_matches(" ERROR"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_clamd_calls_ok_is_clean() {
        let unscanned = |text: &str| Found::Unscanned(text.to_owned());
        for (answer, expected) in [
            ("stream: OK", Found::Nothing),
            ("stream: Eicar-Test-Signature FOUND", Found::Signature("Eicar-Test-Signature".into())),
            ("stream: a FOUND FOUND", Found::Signature("a FOUND".into())),
            ("INSTREAM size limit exceeded. ERROR", unscanned("clamd: INSTREAM size limit exceeded.")),
            ("stream: Can't allocate memory ERROR", unscanned("clamd: Can't allocate memory")),
            ("OK", unscanned("clamd: OK")),
            ("", unscanned("clamd: ")),
            ("UNKNOWN COMMAND", unscanned("clamd: UNKNOWN COMMAND")),
            (
                "stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND",
                unscanned("it is beyond clamd's limits: Heuristics.Limits.Exceeded.MaxFileSize"),
            ),
        ] {
            assert_eq!(found(answer), expected, "{answer}");
        }
    }
}
