//! Brings the agent what happens: devices, health, time and signals.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use vnet_common::api::AuditRecord;

use super::Agent;
use crate::datapath::gc::Collector;
use crate::device::{self, Snapshot};
use crate::lb::health;
use crate::memory;
use crate::observe::{Observer, Saying};

/// Between two looks at what should be right.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Between two turns of the flow collector.
const COLLECT: Duration = Duration::from_secs(1);
/// Between two steps of slow starts.
const WARM: Duration = Duration::from_secs(1);
/// Between two looks at tag sources that may be lost.
const SOURCES: Duration = Duration::from_secs(1);
/// Between two looks at what becomes of the members' connections.
const WATCH: Duration = Duration::from_secs(1);
/// Until the kernel has told its devices.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(10);

/// Follows devices: gives the snapshots, and says when that fails.
pub fn follow_devices(agent: Arc<Agent>) -> mpsc::Receiver<Snapshot> {
    let (to, from) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Err(e) = device::watch(to.clone()).await {
            log::error!("following network devices: {e:#}; trying again");
            block_in_place(|| agent.devices_lost(&e));
            sleep(Duration::from_secs(1)).await;
        }
    });
    from
}

/// Takes the first snapshot: afterwards the datapath is what it should be.
pub async fn begin(agent: &Agent, devices: &mut mpsc::Receiver<Snapshot>) -> Result<()> {
    let first = timeout(FIRST_SNAPSHOT, devices.recv()).await;
    let first = first.context("the kernel does not list its network devices")?.context("network devices cannot be followed")?;
    block_in_place(|| agent.devices_changed(first));
    Ok(())
}

/// Handles events until a signal or a request ends the agent.
pub async fn run(
    agent: &Arc<Agent>,
    mut devices: mpsc::Receiver<Snapshot>,
    mut health: mpsc::UnboundedReceiver<health::Event>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut ending = agent.ending();
    let mut look_after = interval(LOOK_AFTER);
    look_after.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = interval(watchdog_period());
    let collector = tokio::spawn(collect(Arc::clone(agent)));
    let mut groups = agent.parts().quarantine.changes();
    let feedback = tokio::spawn(super::fleet::load::feed_back(Arc::clone(agent)));
    let giving_back = tokio::spawn(memory::give_back());
    let moving = tokio::spawn(super::fleet::moving::move_flows(Arc::clone(agent)));
    let patience = tokio::spawn(super::fleet::moving::keep_patience(Arc::clone(agent)));
    let telling = tokio::spawn(tell(agent.parts().quarantine.records(), Arc::clone(&agent.parts().observer)));
    let mut sources = interval(SOURCES);
    sources.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warm = interval(WARM);
    warm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = interval(WATCH);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(first) = health.recv() => {
                let mut events = vec![first];
                while let Ok(next) = health.try_recv() {
                    events.push(next);
                }
                block_in_place(|| agent.health_changed(events));
            }
            Some(snapshot) = devices.recv() => block_in_place(|| agent.devices_changed(snapshot)),
            Ok(()) = groups.changed() => block_in_place(|| drop(agent.groups_changed())),
            _ = sources.tick() => block_in_place(|| agent.parts().sources.look_after(Instant::now())),
            _ = warm.tick() => block_in_place(|| agent.warm()),
            _ = watch.tick() => block_in_place(|| agent.watch_members()),
            _ = look_after.tick() => block_in_place(|| agent.look_after()),
            _ = watchdog.tick() => tell_systemd(&[sd_notify::NotifyState::Watchdog]),
            _ = terminate.recv() => break log::info!("ending by SIGTERM: the datapath stays as it is"),
            _ = interrupt.recv() => break log::info!("ending by SIGINT: the datapath stays as it is"),
            _ = ending.changed() => break,
        }
    }
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    collector.abort();
    telling.abort();
    giving_back.abort();
    feedback.abort();
    moving.abort();
    patience.abort();
    agent.end();
    Ok(())
}

/// What the audit log records about endpoints is an event, too.
async fn tell(mut records: broadcast::Receiver<AuditRecord>, observer: Arc<Observer>) {
    loop {
        match records.recv().await {
            Ok(r) => {
                let kind = if r.action.starts_with("tag-") { Saying::Tag } else { Saying::Move };
                let way = if r.to.is_empty() { String::new() } else { format!("{} to {}: ", r.from, r.to) };
                observer.events.say(kind, &r.endpoint, &r.action, format!("{way}{} ({})", r.reason, r.who));
            }
            // They are in the audit log all the same.
            Err(broadcast::error::RecvError::Lagged(missed)) => observer.events.untold(missed),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Removes flows that are over.
async fn collect(agent: Arc<Agent>) {
    let mut ticks = interval(COLLECT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut collector = Collector::default();
    loop {
        ticks.tick().await;
        let Some(datapath) = agent.datapath() else { return };
        let turn = spawn_blocking(move || {
            let result = collector.tick(&datapath);
            (collector, result)
        });
        match turn.await {
            Ok((same, result)) => {
                collector = same;
                match result {
                    Ok(done) if done.removed > 0 => {
                        log::debug!("removed {} flows that were over, in {:?}", done.removed, done.took)
                    }
                    Ok(_) => {}
                    Err(e) => log::error!("removing flows that are over: {e:#}"),
                }
            }
            Err(e) => {
                log::error!("removing flows that are over: {e}; starting anew");
                collector = Collector::default();
            }
        }
    }
}

/// Twice as often as systemd asks for it; if it does not ask, the messages go nowhere.
fn watchdog_period() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |period| period / 2).max(Duration::from_millis(100))
}

/// Outside of systemd this does nothing.
pub fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::warn!("telling systemd: {e}");
    }
}
