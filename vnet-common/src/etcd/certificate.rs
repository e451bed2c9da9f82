//! The name in a certificate: to the store, it is the user's.

use std::path::Path;

use anyhow::{Context, Result};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

const SEQUENCE: u8 = 0x30;
/// The version of a certificate is tagged with this, and the one field that may be missing.
const VERSION: u8 = 0xa0;
/// 2.5.4.3: the common name.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The common name of the first certificate in a file of PEM.
///
/// # Errors
/// It cannot be read, or is no certificate with such a name. Nothing that is in the file is told.
pub(super) fn user(file: &Path) -> Result<String> {
    let text = std::fs::read(file).with_context(|| format!("reading the certificate for the store {}", file.display()))?;
    let first = CertificateDer::from_pem_slice(&text).ok();
    let name = first.as_ref().and_then(|der| common_name(der));
    name.with_context(|| format!("{} is no certificate with a common name", file.display()))
}

/// The subject's, from DER.
fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate, _) = item(der)?;
    let (_, body, _) = item(certificate)?;
    // Serial number, algorithm, issuer, validity: before the subject.
    let mut rest = body;
    if body.first() == Some(&VERSION) {
        (_, _, rest) = item(rest)?;
    }
    for _ in 0..4 {
        (_, _, rest) = item(rest)?;
    }
    let (_, mut subject, _) = item(rest).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let mut name = None;
    while !subject.is_empty() {
        // A set of one attribute: an object identifier and its value.
        let (_, set, after) = item(subject)?;
        let (_, attribute, _) = item(set)?;
        let (_, id, value) = item(attribute)?;
        if id == COMMON_NAME {
            name = Some(String::from_utf8(item(value)?.1.to_vec()).ok()?);
        }
        subject = after;
    }
    name
}

/// The first item of DER: its tag, what is in it, and what comes after it.
fn item(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(*first);
    if length > 0x80 {
        let bytes = rest.get(..length - 0x80).filter(|bytes| bytes.len() <= 4)?;
        rest = &rest[bytes.len()..];
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    }
    Some((*tag, rest.get(..length)?, &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `content` with this tag.
    fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
        let content = content.concat();
        let length = u8::try_from(content.len()).unwrap();
        let length = if length < 0x80 { vec![length] } else { vec![0x81, length] };
        [&[tag][..], &length, &content].concat()
    }

    fn name(id: u8, text: &str) -> Vec<u8> {
        der(0x31, &[&der(SEQUENCE, &[&der(6, &[&[0x55, 0x04, id]]), &der(12, &[text.as_bytes()])])])
    }

    fn certificate(version: &[u8], subject: &[&[u8]]) -> Vec<u8> {
        let issuer = der(SEQUENCE, &[&name(3, "a long name of an authority, so that the length takes two bytes")]);
        let (serial, other) = (der(2, &[&[7]]), der(SEQUENCE, &[]));
        der(SEQUENCE, &[&der(SEQUENCE, &[version, &serial, &other, &issuer, &other, &der(SEQUENCE, subject)])])
    }

    #[test]
    fn the_subjects_name_is_found() {
        let subject: [&[u8]; 2] = [&name(10, "vnet"), &name(3, "alice")];
        for version in [der(VERSION, &[&der(2, &[&[2]])]), Vec::new()] {
            assert_eq!(common_name(&certificate(&version, &subject)).as_deref(), Some("alice"));
        }
        let whole = certificate(&[], &subject);
        for length in 0..whole.len() {
            assert_eq!(common_name(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(common_name(&certificate(&[], &[&name(10, "alice")])), None);
        assert_eq!(common_name(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn what_is_no_certificate_is_named_and_not_shown() {
        let file = std::env::temp_dir().join(format!("vnet-no-certificate-{}", std::process::id()));
        std::fs::write(&file, "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----\n").unwrap();
        let error = format!("{:#}", user(&file).unwrap_err());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(error, format!("{} is no certificate with a common name", file.display()));
        assert!(format!("{:#}", user(&file).unwrap_err()).contains("No such file"));
    }
}
