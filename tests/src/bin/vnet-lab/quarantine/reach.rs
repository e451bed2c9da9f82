//! Who reaches whom, tried from outside with real connections.

use super::estate::Estate;
use anyhow::Result;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use vnet_tests::Host;

/// Looks at it, one after the other.
pub struct Table {
    looks: Vec<(&'static str, Vec<bool>)>,
}

/// What is tried, and whether it is to work: at first, after the alert, infected, and clean again.
const TRIED: [(&str, [bool; 4]); 5] = [
    ("web-1 to the shop, port 80", [true, false, false, true]),
    ("web-1 to db-1, port 5432", [true, false, false, true]),
    ("web-1 to remediation, port 80", [true, true, false, true]),
    ("the shop to web-1, port 80", [true, false, false, true]),
    ("the host to web-1, port 80", [true, false, false, true]),
];

impl Table {
    /// No look yet.
    pub fn new() -> Self {
        Self { looks: Vec::new() }
    }

    /// Tries everything.
    pub fn look(&mut self, estate: &Estate, when: &'static str) -> Result<()> {
        let Estate { host, web, db, clean, shop, .. } = estate;
        let tried: [(&Host, SocketAddr); TRIED.len()] = [
            (&web.host, (shop.v4, 80).into()),
            (&web.host, (db.v4, 5432).into()),
            (&web.host, (clean[0].v4, 80).into()),
            (&shop.host, (web.v4, 80).into()),
            (host, (web.v4, 80).into()),
        ];
        let connects = |(from, to): &(&Host, SocketAddr)| -> Result<bool> {
            Ok(from.run(|| TcpStream::connect_timeout(to, Duration::from_millis(500)))?.is_ok())
        };
        self.looks.push((when, tried.iter().map(connects).collect::<Result<_>>()?));
        Ok(())
    }

    /// Prints it; gives what is not as it should be.
    pub fn print(&self) -> Vec<String> {
        let mut faults = Vec::new();
        print!("\n{:<32}", "who reaches whom");
        self.looks.iter().for_each(|(when, _)| print!("{when:>10}"));
        println!();
        for (row, (what, expected)) in TRIED.iter().enumerate() {
            print!("{what:<32}");
            for ((when, seen), expected) in self.looks.iter().zip(expected) {
                let seen = seen.get(row).copied().unwrap_or(false);
                print!("{:>10}", if seen { "yes" } else { "-" });
                if seen != *expected {
                    faults.push(format!("{what}, {when}: {}", if seen { "it is reached" } else { "it is not reached" }));
                }
            }
            println!();
        }
        faults
    }
}
