//! Datagrams, and what is expected of the answers.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::net::UdpSocket;

use super::probe::{any, mark};
use crate::resource::{Match, UdpCheck, probe_data};

/// Bytes of an answer that are looked at.
const LONGEST: usize = 4096;
/// Bytes of an answer that are shown.
const SHOWN: usize = 32;

/// Sends the datagram. The first answer decides.
pub(super) async fn ask(target: SocketAddr, check: &UdpCheck) -> Result<()> {
    let socket = UdpSocket::bind(any(target)).await.context("making a socket")?;
    mark(&socket)?;
    // What anybody else sends is not seen, and "port unreachable" is an error at once.
    socket.connect(target).await?;
    socket.send(&probe_data(&check.send).unwrap_or_default()).await.context("sending")?;
    let mut answer = vec![0; LONGEST];
    let length = socket.recv(&mut answer).await.context("waiting for the answer")?;
    judge(check, answer.get(..length).unwrap_or_default())
}

fn judge(check: &UdpCheck, answer: &[u8]) -> Result<()> {
    let Some(expected) = check.expect.as_deref().and_then(probe_data) else { return Ok(()) };
    let (right, how) = match check.r#match {
        Match::Contains => (memchr::memmem::find(answer, &expected).is_some(), "does not contain"),
        Match::Prefix => (answer.starts_with(&expected), "does not start with"),
        Match::Exact => (answer == expected, "is not"),
    };
    if !right {
        bail!("the answer {} {how} {}", show(answer), show(&expected));
    }
    Ok(())
}

fn show(bytes: &[u8]) -> String {
    let start = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii();
    format!("\"{start}\"{}", if bytes.len() > SHOWN { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expect: Option<&str>, r#match: Match) -> UdpCheck {
        UdpCheck { send: "PING".into(), expect: expect.map(str::to_owned), r#match }
    }

    #[test]
    fn answers_are_judged() {
        use Match::{Contains, Exact, Prefix};
        for (expect, how, answer, fault) in [
            (None, Contains, &b"anything"[..], None),
            (None, Contains, b"", None),
            (Some("ONG"), Contains, b"PONG\r\n", None),
            (Some("ong"), Contains, b"PONG", Some("the answer \"PONG\" does not contain \"ong\"")),
            (Some("PO"), Prefix, b"PONG", None),
            (Some("ON"), Prefix, b"PONG", Some("the answer \"PONG\" does not start with \"ON\"")),
            (Some("PONG"), Exact, b"PONG", None),
            (Some("PONG"), Exact, b"PONG\n", Some("the answer \"PONG\\n\" is not \"PONG\"")),
            (Some("hex:00ff"), Contains, b"\x01\x00\xff", None),
            (Some("hex:00ff"), Contains, b"hex:00ff", Some("the answer \"hex:00ff\" does not contain \"\\x00\\xff\"")),
            (Some(""), Contains, b"", None),
            (Some(""), Exact, b"x", Some("the answer \"x\" is not \"\"")),
        ] {
            let got = judge(&check(expect, how), answer).err().map(|e| e.to_string());
            assert_eq!(got.as_deref(), fault, "{expect:?} {how:?} {answer:?}");
        }
        let long = judge(&check(Some("x"), Contains), &[b'a'; 100]).unwrap_err().to_string();
        assert!(long.contains("aaa\"… does not"), "{long}");
    }
}
