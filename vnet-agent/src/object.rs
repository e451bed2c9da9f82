//! The kernel half, as bytes inside the agent's binary.

/// The eBPF object: an ELF file, aligned as its reader wants it.
#[must_use]
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vnet"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_an_elf_file_for_bpf() {
        const EM_BPF: u16 = 247;
        let object = super::object();
        assert_eq!(&object[..4], b"\x7fELF");
        assert_eq!(u16::from_ne_bytes([object[18], object[19]]), EM_BPF);
        assert_eq!(object.as_ptr() as usize % 8, 0);
    }
}
