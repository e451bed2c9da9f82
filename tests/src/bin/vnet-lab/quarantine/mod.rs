//! Scene `quarantine`: a VM fetches malware, is held, scanned, and let go.

mod estate;
mod hands;
mod reach;

use anyhow::Result;
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Capture, Marked, Pins, Session, wait_for_group};

use estate::Estate;
use reach::Table;

/// How long something may take that is to happen at once.
const SOON: Duration = Duration::from_secs(10);

/// Shows it; gives whether all was as expected. Unless `once`, it stays for a person to play.
pub fn show(once: bool) -> Result<bool> {
    println!("making the network: a host that routes for web-1, db-1, a recorder, two remediation servers and a shop");
    let estate = Estate::new()?;
    println!("starting the agent, attached to tap-*, clamd, and Suricata on tap-web-1");
    let agent = Agent::start(&estate.host, &["tap-*"])?;
    print!("{}", estate.apply(&agent)?);
    let _ids = estate.suricata(&agent)?;
    let mut scene =
        Scene { pins: Pins::open(&estate.host)?, table: Table::new(), faults: Vec::new(), estate: &estate, agent: &agent };
    scene.play()?;
    let faults = scene.finish();
    crate::stay(once, &faults, || hands::print(&estate, &agent))
}

struct Scene<'a> {
    estate: &'a Estate,
    agent: &'a Agent<'a>,
    pins: Pins,
    table: Table,
    faults: Vec<String>,
}

impl Scene<'_> {
    fn play(&mut self) -> Result<()> {
        let Estate { web, shop, recorder, .. } = self.estate;
        let mut session = Session::open(&web.host, &shop.host, shop.v4.into(), 2222)?;
        self.expect("its open connection works", session.exchange(Duration::from_millis(100))?.iter().all(|bytes| *bytes > 0));
        self.table.look(self.estate, "at first")?;

        let server = Marked::serve(&shop.host, (shop.v4, 81).into())?;
        let (_open, sent) = server.fetch(&web.host)?;
        let held = || self.pins.is_held(self.estate.device).unwrap_or(false).then(|| sent.elapsed());
        let took = spin("web-1 to be held", held)?;
        println!(
            "\nweb-1 fetched a marked file from {}: held {:.2} ms after the server sent it",
            shop.v4,
            took.as_secs_f64() * 1e3
        );
        session.drain()?;
        let bytes = session.exchange(Duration::from_millis(500))?;
        println!("its open connection in the next half second: {} bytes from it, {} bytes to it", bytes[0], bytes[1]);
        self.expect("its open connection is dead", bytes == [0, 0]);
        self.in_group("limited")?;
        self.say(&["quarantine", "ls"])?;
        self.say(&["explain", "--from", "web-1", "--to", &format!("{}:80/tcp", shop.v4)])?;
        self.table.look(self.estate, "alert")?;

        println!("\nscanning its disk, with an infected file on it");
        let recording = Capture::start(&recorder.host)?;
        let scanned = self.say(&["tag", "source", "scan", "clamav", "web-1"])?;
        self.expect("the infected file is found", scanned.contains("invoice.exe"));
        self.in_group("isolated")?;
        self.table.look(self.estate, "infected")?;
        let seen = recording.packets()?;
        println!("the recorder saw what web-1 tried meanwhile: packets between {} pairs of addresses", seen.len());
        self.expect("the recorder gets copies", seen.iter().any(|(from, _)| *from == web.v4));

        println!("\nremoving the file, and scanning again");
        std::fs::remove_file(self.estate.guest.path().join("invoice.exe"))?;
        self.say(&["tag", "source", "scan", "clamav", "web-1"])?;
        let start = Instant::now();
        self.in_group("web")?;
        println!(
            "web-1 is in its own group again after {:.1} s (held for 5 s at least after an alert)",
            start.elapsed().as_secs_f64()
        );
        self.table.look(self.estate, "clean")?;
        self.say(&["quarantine", "log", "web-1"]).map(drop)
    }

    /// Runs vnet-ctl for a person to see.
    fn say(&self, args: &[&str]) -> Result<String> {
        let printed = self.agent.ctl_printed(args)?;
        println!("\n$ vnet-ctl {}\n{}", args.join(" "), printed.trim_end());
        Ok(printed)
    }

    fn expect(&mut self, what: &str, is_so: bool) {
        if !is_so {
            self.faults.push(what.to_owned());
        }
    }

    fn in_group(&self, group: &str) -> Result<()> {
        wait_for_group(self.agent, "web-1", group)
    }

    /// Prints the table and the verdict; gives all that is not as it should be.
    fn finish(mut self) -> Vec<String> {
        self.faults.extend(self.table.print());
        println!();
        match self.faults.as_slice() {
            [] => println!("all as expected: cut off, helped, isolated, and let go once it was clean"),
            faults => faults.iter().for_each(|fault| println!("NOT AS EXPECTED: {fault}")),
        }
        self.faults
    }
}

/// Waits for what is to be timed, without sleeping.
fn spin<T>(what: &str, ask: impl Fn() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Some(answer) => return Ok(answer),
            None if start.elapsed() > SOON => anyhow::bail!("waited {} s for {what}", SOON.as_secs()),
            None => std::hint::spin_loop(),
        }
    }
}
