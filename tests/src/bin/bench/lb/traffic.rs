//! Servers and senders of the end-to-end cases.

use crate::packets::stay_on;
use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use vnet_tests::Host;

/// The port that is served.
pub const PORT: u16 = 9000;

/// What a member serves: a UDP socket that nobody reads (what overflows it is dropped, which costs the same in all cases).
pub struct Server {
    _sink: UdpSocket,
}

impl Server {
    /// Starts it; a TCP client gets one byte, and all it sends is read.
    pub fn start(host: &Host) -> Result<Self> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let (sink, listener) = host.run(|| Ok::<_, std::io::Error>((UdpSocket::bind(any)?, TcpListener::bind(any)?)))??;
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that ends early is no failure of the server.
                let _ = serve(client);
            }
        });
        Ok(Self { _sink: sink })
    }
}

fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    client.read_exact(&mut buffer[..1])?;
    client.write_all(&buffer[..1])?;
    while client.read(&mut buffer)? != 0 {}
    Ok(())
}

/// Packets per second and CPU time in ns per packet of a sender of small datagrams. What the packets cost up to the
/// receiver's socket happens in the sender's context.
pub fn datagrams(host: &Host, to: SocketAddrV4, time: Duration) -> Result<(f64, f64)> {
    let run = || -> Result<_> {
        stay_on(0)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let mut sent = 0u32;
        while start.elapsed() < time {
            for _ in 0..64 {
                socket.send(&[0x55; 18]).with_context(|| format!("sending to {to}"))?;
            }
            sent += 64;
        }
        let packets = f64::from(sent);
        let cpu = cpu_time()?.saturating_sub(cpu);
        Ok((packets / start.elapsed().as_secs_f64(), cpu.as_nanos() as f64 / packets))
    };
    host.run(run)?
}

/// Gbit/s of one TCP connection.
pub fn bulk(host: &Host, to: SocketAddrV4, time: Duration) -> Result<f64> {
    let run = || -> Result<_> {
        let mut stream = connect(to)?;
        let buffer = vec![0x55; 1 << 17];
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < time {
            stream.write_all(&buffer)?;
            bytes += buffer.len();
        }
        Ok(bytes as f64 * 8e-9 / start.elapsed().as_secs_f64())
    };
    host.run(run)?
}

/// Connections per second, one after the other, each with a byte in both directions.
pub fn connections(host: &Host, to: SocketAddrV4, time: Duration) -> Result<f64> {
    let run = || -> Result<_> {
        let start = Instant::now();
        let mut n = 0u32;
        while start.elapsed() < time {
            connect(to)?;
            n += 1;
        }
        Ok(f64::from(n) / start.elapsed().as_secs_f64())
    };
    host.run(run)?
}

fn connect(to: SocketAddrV4) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    // Ends with a reset: ports would run out in TIME_WAIT.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.write_all(&[0])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// UDP packets that reached a host's sockets, whether there was room or not.
pub fn datagrams_received(host: &Host) -> Result<u64> {
    let snmp = host.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?.context("reading UDP counters")?;
    let line = snmp.lines().filter(|l| l.starts_with("Udp:")).nth(1).context("no UDP counters")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    match fields[..] {
        [received, _, errors, ..] => Ok(received + errors),
        _ => anyhow::bail!("UDP counters of another form: {line}"),
    }
}
