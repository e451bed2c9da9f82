//! A connection to the store that breaks at the worst moment.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vnet_common::etcd::{self, Access, Client, RoleSet};
use vnet_common::fleet::SERIAL;

/// What is lost of the first change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It never comes to the store.
    Request,
    /// It is done, and nobody hears of it.
    Answer,
    /// Nothing, but somebody else's comes first.
    Race,
    /// The same, and that one is to take more than one transaction.
    Filling,
}

/// Passes on what goes to the store and back, but for the first change; gives its port. Other connections live on.
pub fn start(access: &Access, lost: Lost) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (access, armed) = (access.clone(), Arc::new(AtomicBool::new(true)));
    // It ends with the process.
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let store = TcpStream::connect(&access.endpoints()[0]).unwrap();
            let is_answer = {
                let (access, armed) = (access.clone(), armed.clone());
                move |_: &[u8]| lost == Lost::Answer && written(&access) && armed.swap(false, Ordering::Relaxed)
            };
            let (there, here) = (access.clone(), armed.clone());
            let is_change = move |bytes: &[u8]| {
                let wanted = SERIAL.as_bytes();
                let change = lost != Lost::Answer && bytes.windows(wanted.len()).any(|window| window == wanted);
                let first = change && here.swap(false, Ordering::Relaxed);
                match lost {
                    Lost::Race if first => as_another(&there, SERIAL),
                    Lost::Filling if first => as_another(&there, "/vnet/v1/desired/resources/Policy/first"),
                    _ => {}
                }
                first && lost == Lost::Request
            };
            let both = (client.try_clone().unwrap(), store.try_clone().unwrap());
            std::thread::spawn(move || pass(client, store, is_change));
            std::thread::spawn(move || pass(both.1, both.0, is_answer));
        }
    });
    port
}

/// Passes on what goes to the store and back, but for two seconds after it begins to check its clients: then it takes no connection.
/// Gives its port.
pub fn deaf_when_checked(access: &Access) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let access = access.clone();
    // It ends with the process.
    std::thread::spawn(move || {
        let mut since = None;
        for client in listener.incoming().flatten() {
            if is_checking(&access) && since.get_or_insert_with(Instant::now).elapsed() < Duration::from_secs(2) {
                continue;
            }
            let store = TcpStream::connect(&access.endpoints()[0]).unwrap();
            let both = (client.try_clone().unwrap(), store.try_clone().unwrap());
            std::thread::spawn(move || pass(client, store, |_| false));
            std::thread::spawn(move || pass(both.1, both.0, |_| false));
        }
    });
    port
}

fn is_checking(access: &Access) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(RoleSet::is_enabled(access, &access.endpoints()[0])).unwrap()
}

/// From one to the other, until this is to be lost: then both ends are cut off.
fn pass(mut from: TcpStream, mut to: TcpStream, is_lost: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if is_lost(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Has the change been done?
fn written(access: &Access) -> bool {
    with_client(access, async |client| client.get(SERIAL).await.unwrap().is_some())
}

fn as_another(access: &Access, key: &str) {
    let write = etcd::Write::Put(key.to_owned(), b"\"bob@h2: apply\"".to_vec(), 0);
    with_client(access, async |client| client.write(&[write]).await.unwrap());
}

fn with_client<T>(access: &Access, ask: impl AsyncFnOnce(&mut Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = access.connect(&access.endpoints()[0]).await.unwrap();
        ask(&mut client).await
    })
}
