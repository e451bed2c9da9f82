//! Scene `fleet`: three hosts that share an etcd.

mod estate;
mod hands;
mod load;

use anyhow::{Context as _, Result};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use vnet_tests::{Agent, Clients, Host, wait_for};

use estate::{Estate, HOSTS, VIP};

/// How long something may take.
const SOON: Duration = Duration::from_secs(10);
/// New connections each second, of each host.
const RATE: u32 = 40;

/// Shows it; gives whether all was as expected. Unless `once`, it stays for a person to play.
pub fn show(once: bool) -> Result<bool> {
    println!("making the network: three hosts with two VMs each, an etcd of three members between them, and three servers");
    let estate = Estate::new()?;
    println!("setting the store up: from now on it checks certificates, and each host may write only of itself");
    print!("{}", estate.fleet.init_store()?);
    println!("starting an agent on each host");
    let agents = (0..HOSTS.len()).map(|host| estate.fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
    let mut scene = Scene { estate: &estate, agents: &agents, faults: Vec::new() };
    let clients = scene.play()?;
    println!();
    match scene.faults.as_slice() {
        [] => println!("all as expected: one network, whoever of its hosts is asked"),
        faults => faults.iter().for_each(|fault| println!("NOT AS EXPECTED: {fault}")),
    }
    let faults = scene.faults;
    let shown = crate::stay(once, &faults, || hands::print(&estate, &agents));
    drop(clients);
    shown
}

struct Scene<'a> {
    estate: &'a Estate,
    agents: &'a [Agent<'a>],
    faults: Vec<String>,
}

impl Scene<'_> {
    /// Gives the clients, which go on.
    fn play(&mut self) -> Result<Clients> {
        self.wait_for("all hosts to be alive", 0, &["host", "ls"], |list| list.matches("alive").count() == HOSTS.len())?;
        let policy = crate::policy("fleet.yaml")?;
        println!("\napplying {} on host-a, without feedback at first", crate::shown(&policy)?);
        let yaml = std::fs::read_to_string(&policy).with_context(|| format!("reading {}", policy.display()))?;
        let applied = self.agents[0].apply(&yaml.replace("mode: leastLoad", "mode: off"))?;
        print!("{applied}");
        self.expect("one apply is in force on all hosts", applied.contains("in force on 3 of 3 hosts"));
        self.say(1, &["host", "ls"])?;

        let clients = Clients::start((0..HOSTS.len()).map(|host| &self.estate.fleet.vm(host, 1).host), (VIP, 80).into(), RATE)?;
        self.load(&yaml)?;
        self.hold()?;
        self.lose_a_member()?;
        self.claim()?;
        Ok(clients)
    }

    fn load(&mut self, yaml: &str) -> Result<()> {
        println!(
            "\n{RATE} connections a second from a VM of each host to {VIP}; m1 keeps each for 0.5 s, m2 for 1 s, m3 for 2 s.\n\
             Connections that are open, with the same weight for each:"
        );
        load::watch(&self.estate.farm, 5);
        println!("with load feedback:");
        self.agents[1].apply(yaml)?;
        let level = load::watch_until(&self.estate.farm, 1.3, SOON)?;
        self.expect("feedback brings members to the same load", level);
        let members = self.say(2, &["lb", "members", "web"])?;
        self.expect("weights have factors", members.contains("FACTOR"));
        Ok(())
    }

    /// A VM is held on one host, and its peers are told.
    fn hold(&mut self) -> Result<()> {
        let [shop1, shop2] = [0, 1].map(|host| SocketAddr::from((self.estate.fleet.vm(host, 0).v4, 80)));
        let desk = &self.estate.fleet.vm(2, 0).host;
        self.expect("the desktop on host-c reaches the shop on both hosts", reaches(desk, shop1)? && reaches(desk, shop2)?);
        let stranger = &self.estate.fleet.vm(2, 1).host;
        self.expect("a VM that is no desktop does not", !reaches(stranger, shop2)?);
        println!("\nholding shop-2 on host-b");
        self.say(1, &["quarantine", "hold", "shop-2", "--group", "isolated", "--reason", "to see it"])?;
        let explain = ["explain", "--from", "desk-1", "--to", "10.1.0.10:80/tcp"];
        self.wait_for("host-c to know that shop-2 is held", 2, &explain, |story| story.contains("isolated"))?;
        self.expect("who is held is reached by nobody", !reaches(desk, shop2)?);
        self.expect("all others are", reaches(desk, shop1)?);
        println!("\nwhat host-c, where the desktop is, says of it:");
        self.say(2, &explain)?;
        self.say(2, &["events", "--kind", "drop,move", "--limit", "3"])?;
        self.say(1, &["events", "--kind", "drop,move", "--limit", "3"])?;
        self.say(1, &["quarantine", "release", "shop-2", "--reason", "seen", "--yes"])?;
        wait_for("shop-2 to be reached again", SOON, || reaches(desk, shop2).unwrap_or(false).then_some(()))
    }

    /// A member of etcd dies; changes go on.
    fn lose_a_member(&mut self) -> Result<()> {
        println!("\nkilling a member of etcd");
        self.estate.fleet.etcd.kill(0)?;
        let drained = self.say(0, &["lb", "drain", "web", "m1"])?;
        self.expect("with two members of three, changes are possible", drained.contains("m1"));
        self.say(0, &["lb", "undrain", "web", "m1"])?;
        self.say_status(0)?;
        println!("\nstarting it again");
        self.estate.fleet.etcd.restart(0)
    }

    /// Two hosts have the device of one endpoint.
    fn claim(&mut self) -> Result<()> {
        println!("\nroamer comes up on host-a, and then, by mistake, on host-b too");
        let is_on = |host: usize| {
            let to = format!("{}:22/tcp", self.estate.roamer(host));
            let there = format!("endpoint roamer on host {}", HOSTS[host]);
            self.wait_for(&format!("host-c to see {there}"), 2, &["explain", "--from", "desk-1", "--to", &to], |s| {
                s.contains(&there)
            })
        };
        let first = self.estate.roam(0)?;
        is_on(0)?;
        let _second = self.estate.roam(1)?;
        self.wait_for("host-b to see two of it", 1, &["status"], |status| status.contains("roamer"))?;
        self.say_status(1)?;
        println!("\nit is where it was first, until it is there no more");
        drop(first);
        is_on(1)?;
        self.say(2, &["explain", "--from", "desk-1", "--to", &format!("{}:22/tcp", self.estate.roamer(1))]).map(drop)
    }

    /// Waits until what a host's `vnet-ctl` prints is so.
    fn wait_for(&self, what: &str, host: usize, args: &[&str], is_so: impl Fn(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        let asked = || {
            last = self.agents[host].ctl_printed(args).ok()?;
            is_so(&last).then_some(())
        };
        wait_for(what, SOON, asked)
            .with_context(|| format!("vnet-ctl {}:\n{last}\n{}", args.join(" "), self.agents[host].logged()))
    }

    /// Runs vnet-ctl on a host for a person to see.
    fn say(&self, host: usize, args: &[&str]) -> Result<String> {
        let printed = self.agents[host].ctl_printed(args)?;
        let words: Vec<String> =
            args.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() }).collect();
        println!("\n{} $ vnet-ctl {}\n{}", HOSTS[host], words.join(" "), printed.trim_end());
        Ok(printed)
    }

    /// The same for `status`, without its maps.
    fn say_status(&self, host: usize) -> Result<()> {
        let status = self.agents[host].ctl(&["status"])?;
        let (status, _maps) = status.split_once("\n\n").unwrap_or((&status, ""));
        println!("\n{} $ vnet-ctl status\n{status}", HOSTS[host]);
        Ok(())
    }

    fn expect(&mut self, what: &str, is_so: bool) {
        if !is_so {
            self.faults.push(what.to_owned());
        }
    }
}

fn reaches(from: &Host, to: SocketAddr) -> Result<bool> {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
}
