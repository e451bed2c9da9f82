//! Programs on devices.
//!
//! A device has two TCX links, pinned as `links/<ifindex>-ingress` and `links/<ifindex>-egress`. They outlive the agent;
//! the next one finds them, and puts its programs into them between two packets. A link belongs to one instance of a
//! device: when the device is deleted the link is dead, whatever gets its index afterwards.
//!
//! [`Tcx`] is the only thing that knows how programs get onto devices. Another way (clsact filters, for kernels before
//! 6.6) would be a second type with the same methods, chosen by [`super::kernel`].

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::programs::loaded_programs;

use super::sys::{self, Hook, LINK_TYPE_TCX, Order};

/// A loaded program.
pub struct Program {
    /// Keeps it.
    pub fd: OwnedFd,
    /// Its number in the kernel.
    pub id: u32,
}

/// The programs of a device.
pub struct Programs {
    /// `vm_egress`: what the endpoint sends. It sits on the device's ingress.
    pub from_endpoint: Program,
    /// `vm_ingress`: what reaches the endpoint. It sits on the device's egress.
    pub to_endpoint: Program,
}

impl Programs {
    fn on(&self, hook: Hook) -> &Program {
        match hook {
            Hook::Ingress => &self.from_endpoint,
            Hook::Egress => &self.to_endpoint,
        }
    }
}

/// A program of somebody else that sees packets before ours does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Its number in the kernel.
    pub id: u32,
    /// Its name; may be empty.
    pub name: String,
    /// Where it sits.
    pub hook: Hook,
}

/// What becomes of a device on which programs of others run before ours. Such a program sees a packet before any rule does, and may send it on by
/// itself, past all of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreign {
    /// They are told of ([`Attached::foreign`]).
    #[default]
    Warn,
    /// Attaching fails. Links that are there stay: without them there would be even less.
    Refuse,
}

impl std::fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        write!(f, "{name} (id {}, {})", self.id, hook_name(self.hook))
    }
}

/// What attaching found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Both links were there already.
    pub adopted: bool,
    /// Programs of others that run before ours, in their order.
    pub foreign: Vec<ForeignProgram>,
}

const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    }
}

/// A pinned link: its place, by name.
struct Pin {
    path: PathBuf,
    ifindex: u32,
    hook: Hook,
}

impl Pin {
    fn new(dir: &Path, ifindex: u32, hook: Hook) -> Self {
        Self { path: dir.join(format!("{ifindex}-{}", hook_name(hook))), ifindex, hook }
    }

    /// Every link pinned in `dir`; what has another name is not ours and left alone.
    fn all(dir: &Path) -> Result<Vec<Self>> {
        let mut pins = Vec::new();
        if !dir.exists() {
            return Ok(pins);
        }
        for file in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let name = file.with_context(|| format!("reading {}", dir.display()))?.file_name();
            let Some((ifindex, hook)) = name.to_str().and_then(|n| n.split_once('-')) else { continue };
            let hook = HOOKS.into_iter().find(|h| hook_name(*h) == hook);
            if let (Ok(ifindex), Some(hook)) = (ifindex.parse(), hook) {
                pins.push(Self::new(dir, ifindex, hook));
            }
        }
        Ok(pins)
    }

    /// The link, if it is pinned and its device lives. What is pinned here and dead is removed.
    fn live(&self) -> Result<Option<OwnedFd>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let link = sys::obj_get(&self.path).with_context(|| format!("opening the pinned link {}", self.path.display()))?;
        // Something that is no link has other information, or none; it did not come from us.
        let info = sys::link_info(link.as_fd())
            .with_context(|| format!("{}: what is pinned there is no link; remove it", self.path.display()))?;
        if info.kind == LINK_TYPE_TCX && info.ifindex == self.ifindex {
            return Ok(Some(link));
        }
        self.unpin()?;
        Ok(None)
    }

    fn unpin(&self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("removing the pinned link {}", self.path.display()))
    }

    fn detach(&self) -> Result<()> {
        if let Some(link) = self.live()? {
            sys::link_detach(link.as_fd())
                .with_context(|| format!("taking the {} program off device {}", hook_name(self.hook), self.ifindex))?;
            self.unpin()?;
        }
        Ok(())
    }
}

/// Puts a new program into a link; says if the link's device still lives.
fn replace(link: BorrowedFd<'_>, pin: &Pin, program: &Program) -> Result<bool> {
    match sys::link_update(link, program.fd.as_fd()) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => pin.unpin().map(|()| false),
        Err(e) => Err(e).with_context(|| format!("replacing the {} program on device {}", hook_name(pin.hook), pin.ifindex)),
    }
}

/// Programs on devices, by TCX links.
pub struct Tcx {
    dir: PathBuf,
    programs: Programs,
    order: Order,
    foreign: Foreign,
}

impl Tcx {
    /// Works with the links in `dir`.
    pub fn new(dir: PathBuf, programs: Programs, order: Order, foreign: Foreign) -> Self {
        Self { dir, programs, order, foreign }
    }

    /// Gives the programs back.
    pub fn into_programs(self) -> Programs {
        self.programs
    }

    /// Puts the programs into all links that are pinned here, one after the other. Gives the devices.
    pub fn adopt(&self) -> Result<Vec<u32>> {
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let mut devices = BTreeSet::new();
        for pin in Pin::all(&self.dir)? {
            if let Some(link) = pin.live()?
                && replace(link.as_fd(), &pin, self.programs.on(pin.hook))?
            {
                devices.insert(pin.ifindex);
            }
        }
        Ok(devices.into_iter().collect())
    }

    /// Begins to take over the links of `from`, whose programs use other maps. Gives the devices.
    ///
    /// Replies must find their flows in whichever maps these are: until [`Tcx::end_take_over`] the programs for what reaches
    /// endpoints run both, new ones first (what one of them rewrote is none of the other's business). Then what endpoints
    /// send is given to the new programs, so that new flows are made in the new maps only.
    pub fn begin_take_over(&self, from: &Path) -> Result<Vec<u32>> {
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let mut devices = BTreeSet::new();
        for hook in [Hook::Egress, Hook::Ingress] {
            for old in Pin::all(from)?.into_iter().filter(|old| old.hook == hook) {
                if let Some(link) = old.live()? {
                    self.take_over(&old, link.as_fd())?;
                    devices.insert(old.ifindex);
                }
            }
        }
        Ok(devices.into_iter().collect())
    }

    fn take_over(&self, old: &Pin, link: BorrowedFd<'_>) -> Result<()> {
        let new = Pin::new(&self.dir, old.ifindex, old.hook);
        let there = new.live()?.is_some();
        let pin = |link: BorrowedFd<'_>| sys::obj_pin(link, &new.path).with_context(|| format!("pinning {}", new.path.display()));
        if old.hook == Hook::Egress {
            if there {
                return Ok(());
            }
            let program = self.programs.to_endpoint.fd.as_fd();
            let made = sys::link_create_before(program, old.ifindex, old.hook, link);
            return pin(made.with_context(|| format!("attaching a second egress program to device {}", old.ifindex))?.as_fd());
        }
        if replace(link, old, &self.programs.from_endpoint)? {
            if !there {
                pin(link)?;
            }
            old.unpin()?;
        }
        Ok(())
    }

    /// The maps of the old programs are not needed any more: takes what is left of them off.
    pub fn end_take_over(&self, from: &Path) -> Result<()> {
        Pin::all(from)?.iter().try_for_each(Pin::detach)
    }

    /// Puts the programs onto a device, unless they are there. When it fails, the device is as before.
    pub fn attach(&self, ifindex: u32) -> Result<Attached> {
        let mut made = Vec::new();
        for hook in HOOKS {
            let pin = Pin::new(&self.dir, ifindex, hook);
            match self.attach_hook(&pin) {
                Ok(false) => {}
                Ok(true) => made.push(pin),
                Err(e) => {
                    for pin in made {
                        pin.detach()?;
                    }
                    return Err(e);
                }
            }
        }
        let mut foreign = Vec::new();
        for hook in HOOKS {
            foreign.append(&mut self.foreign(ifindex, hook)?);
        }
        if self.foreign == Foreign::Refuse && !foreign.is_empty() {
            let names: Vec<String> = foreign.iter().map(ForeignProgram::to_string).collect();
            made.iter().try_for_each(Pin::detach)?;
            bail!(
                "programs of others run before ours on device {ifindex}: {}; take them off or attach them after ours, or start the agent \
                 with --foreign-programs warn",
                names.join(", ")
            );
        }
        Ok(Attached { adopted: made.is_empty(), foreign })
    }

    /// Says if a new link was made.
    fn attach_hook(&self, pin: &Pin) -> Result<bool> {
        let program = self.programs.on(pin.hook);
        if let Some(link) = pin.live()?
            && replace(link.as_fd(), pin, program)?
        {
            return Ok(false);
        }
        let what = || format!("attaching the {} program to device {}", hook_name(pin.hook), pin.ifindex);
        let link = sys::link_create(program.fd.as_fd(), pin.ifindex, pin.hook, self.order).with_context(what)?;
        sys::obj_pin(link.as_fd(), &pin.path).with_context(|| format!("pinning {}", pin.path.display()))?;
        Ok(true)
    }

    /// The programs before ours on a device's hook.
    fn foreign(&self, ifindex: u32, hook: Hook) -> Result<Vec<ForeignProgram>> {
        let ids = sys::programs_of(ifindex, hook)
            .with_context(|| format!("asking for the {} programs on device {ifindex}", hook_name(hook)))?;
        let ours = self.programs.on(hook).id;
        let Some(place) = ids.iter().position(|id| *id == ours) else {
            bail!("the {} program is not on device {ifindex} any more: somebody took it off", hook_name(hook));
        };
        Ok(ids.iter().take(place).map(|id| ForeignProgram { id: *id, name: program_name(*id), hook }).collect())
    }

    /// Takes the programs off a device.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        HOOKS.into_iter().try_for_each(|hook| Pin::new(&self.dir, ifindex, hook).detach())
    }

    /// The devices that have programs.
    pub fn devices(&self) -> Result<Vec<u32>> {
        let mut devices = BTreeSet::new();
        for pin in Pin::all(&self.dir)? {
            if pin.live()?.is_some() {
                devices.insert(pin.ifindex);
            }
        }
        Ok(devices.into_iter().collect())
    }
}

/// Takes the programs of every link pinned in `dir` off their devices, and removes it. Gives the devices.
pub fn detach_all(dir: &Path) -> Result<Vec<u32>> {
    let mut devices = BTreeSet::new();
    for pin in Pin::all(dir)? {
        pin.detach()?;
        devices.insert(pin.ifindex);
    }
    if dir.exists() {
        fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(devices.into_iter().collect())
}

fn program_name(id: u32) -> String {
    let found = loaded_programs().filter_map(Result::ok).find(|p| p.id() == id);
    found.and_then(|p| p.name_as_str().map(str::to_owned)).unwrap_or_default()
}
