//! The hooks in `vnet-agent/dist/hooks`, called as libvirt and Proxmox call them.

use std::path::Path;
use std::process::Command;

use crate::attach::{in_namespace, no_namespaces};
use crate::support::{Host, ran};

const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vnet-agent/dist/hooks");

/// As libvirt writes it.
const DOMAIN: &str = "\
<domain type='kvm' id='3'>
  <name>web</name>
  <devices>
    <disk type='file' device='disk'>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:0a'/>
      <source bridge='br0'/>
      <target dev='vnet7'/>
      <model type='virtio'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:0b'/>
      <target dev='macvtap0'/>
    </interface>
  </devices>
</domain>
";

#[test]
fn libvirt_starts_no_guest_before_its_ports_are_attached() {
    if no_namespaces("libvirt_starts_no_guest_before_its_ports_are_attached") {
        return;
    }
    let host = Host::start();
    host.file("domain.xml", DOMAIN);
    let hook = |operation: &str, more: &str| {
        let tap = "ip tuntap add vnet7 mode tap; ip link set vnet7 up";
        let script = format!(
            "{tap}; code=0; {more} {HOOKS}/libvirt-qemu web {operation} - < domain.xml || code=$?; ip -o link show vnet7; exit $code"
        );
        in_namespace(&host, &script)
    };
    let ran = hook("start begin", "");
    assert!(ran.code == 0 && ran.out.contains(",UP"), "{ran:?}");
    assert_eq!(host.asked("attach"), serde_json::json!({"device": "vnet7"}), "and not the macvtap");
    assert!(ran.err.contains("device/vnet7 attached"), "what it says is not for libvirt to read: {ran:?}");
    let ran = hook("start begin", "VNET_ATTACH_TIMEOUT=1 VNET_SOCKET=/nowhere");
    assert!(ran.code == 1 && !ran.out.contains(",UP") && ran.err.contains("stays down"), "{ran:?}");
    let ran = hook("prepare begin", "VNET_SOCKET=/nowhere");
    assert!(ran.code == 0 && ran.err.is_empty(), "only the start matters: {ran:?}");
    host.file("domain.xml", &DOMAIN.replace("<target dev='vnet7'/>", ""));
    let ran = hook("start begin", "");
    assert!(ran.code == 1 && ran.err.contains("the interface with MAC 52:54:00:00:00:0a has no device yet"), "{ran:?}");
    host.file("domain.xml", "");
    assert_eq!(hook("start begin", "").code, 1);
}

#[test]
fn proxmox_starts_no_vm_before_its_ports_are_attached() {
    if no_namespaces("proxmox_starts_no_vm_before_its_ports_are_attached") {
        return;
    }
    let host = Host::start();
    let config = "\
boot: order=scsi0
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1
net1: virtio=BC:24:11:00:00:02,bridge=vmbr0,queues=4
net2: e1000=BC:24:11:00:00:03
[before-upgrade]
net3: virtio=BC:24:11:00:00:04,bridge=vmbr0
";
    host.file("pve/qemu-server/100.conf", config);
    let hook = |script: &str| {
        let script = script.replace("HOOK", &format!("VNET_PVE_DIRECTORY=pve {HOOKS}/proxmox"));
        // The namespace's own devices are in the /sys of its own mount.
        in_namespace(&host, &format!("exec unshare --mount sh -euc \"mount -t sysfs sysfs /sys; {script}\""))
    };
    let ran = hook("HOOK 100 pre-start; ip -o -d link; HOOK 100 post-stop; echo after; ip -o link");
    assert_eq!(ran.code, 0, "{ran:?}");
    let (during, after) = ran.out.split_once("after\n").unwrap();
    let line = |device: &str| during.lines().find(|line| line.contains(&format!(": {device}:"))).unwrap_or_default();
    assert!(line("tap100i0").contains(",UP") && !line("tap100i0").contains("multi_queue numqueues"), "{during}");
    assert!(line("tap100i1").contains(",UP") && line("tap100i1").contains("multi_queue numqueues"), "{during}");
    assert!(line("tap100i0").contains("persist on"), "QEMU opens it later: {during}");
    assert!(!during.contains("tap100i2") && !during.contains("tap100i3") && !after.contains("tap"), "{ran:?}");

    let ran = hook(
        "ip tuntap add tap100i0 mode tap; ip link set tap100i0 up; code=0; VNET_ATTACH_TIMEOUT=1 VNET_SOCKET=/nowhere HOOK 100 pre-start || code=\\$?; ip -o link; exit \\$code",
    );
    assert!(ran.code == 1 && !ran.out.contains("tap100i0"), "{ran:?}");
    let ran = hook("HOOK 101 pre-start");
    assert!(ran.code != 0, "a VM whose ports are not known was let start: {ran:?}");
    std::fs::create_dir_all(host.directory.join("pve/nodes/other")).unwrap();
    std::fs::rename(host.directory.join("pve/qemu-server"), host.directory.join("pve/nodes/other/qemu-server")).unwrap();
    let ran = hook("PVE_MIGRATED_FROM=other HOOK 100 pre-start; ip -o link");
    assert!(ran.code == 0 && ran.out.contains("tap100i1"), "{ran:?}");
}

#[test]
fn the_scripts_are_clean() {
    let scripts = ["libvirt-qemu", "proxmox"];
    for script in scripts {
        let checked = ran(Command::new("sh").arg("-n").arg(Path::new(HOOKS).join(script)).output().unwrap());
        assert_eq!((checked.code, checked.err.as_str()), (0, ""), "{script}");
    }
    match Command::new("shellcheck").args(scripts).current_dir(HOOKS).output() {
        Ok(output) => assert_eq!((ran(output).out.as_str()), ""),
        Err(error) => eprintln!("SKIPPED the_scripts_are_clean: shellcheck: {error}"),
    }
}
