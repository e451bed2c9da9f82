//! Faults of health checks.

use super::super::{HttpCheck, LoadBalancerSpec};
use super::alone::{Report, has_ranges};
use super::rule::only_one;

/// Looks at the health check of a load balancer.
pub(super) fn health_check(spec: &LoadBalancerSpec, report: Report<'_>) {
    let Some(check) = &spec.health_check else { return };
    if check.timeout_ms > check.interval_ms {
        let message = format!(
            "the timeout of {} ms is longer than the interval of {} ms: lower `timeoutMs`, or raise `intervalMs`",
            check.timeout_ms, check.interval_ms
        );
        report("/spec/healthCheck/timeoutMs", message);
    }
    let unclear = check.port.is_none()
        && check.icmp.is_none()
        && has_ranges(spec)
        && (spec.members.iter().any(|member| member.port.is_none()) || spec.members.is_empty());
    if unclear {
        let message = "members that serve a range of ports have no one port to check: give `port`";
        report("/spec/healthCheck", message.to_owned());
    }
    let types = [("http", check.http.is_some()), ("udp", check.udp.is_some()), ("icmp", check.icmp.is_some())];
    // None of them is TCP.
    only_one(&types, "/spec/healthCheck", "a health check", false, report);
    if check.icmp.is_some() && check.port.is_some() {
        report("/spec/healthCheck/port", "a ping goes to no port: remove `port`, or `icmp`".to_owned());
    }
    if let Some(http) = &check.http {
        self::http(http, report);
    }
    if let Some(udp) = &check.udp
        && udp.expect.is_none()
        && udp.r#match != Default::default()
    {
        report("/spec/healthCheck/udp/match", "`match` says where `expect` must be, which is not given".to_owned());
    }
}

fn http(http: &HttpCheck, report: Report<'_>) {
    let of_tls = [
        ("serverName", http.server_name.is_some()),
        ("caFile", http.ca_file.is_some()),
        ("insecureSkipVerify", http.insecure_skip_verify),
    ];
    for (field, _) in of_tls.into_iter().filter(|(_, given)| *given && !http.https) {
        let message = format!("`{field}` is for TLS: add `https: true`, or remove it");
        report(&format!("/spec/healthCheck/http/{field}"), message);
    }
    if http.https && http.insecure_skip_verify && http.ca_file.is_some() {
        let message = "with `insecureSkipVerify` any certificate is taken: remove it, or `caFile`";
        report("/spec/healthCheck/http/insecureSkipVerify", message.to_owned());
    }
}

/// Looks at the passive health of a load balancer.
pub(super) fn passive_health(spec: &LoadBalancerSpec, report: Report<'_>) {
    if let Some(passive) = &spec.passive_health
        && passive.max_eject_ms < passive.base_eject_ms
    {
        let message = format!(
            "at most {} ms out is less than the {} ms of the first time: raise `maxEjectMs`, or lower `baseEjectMs`",
            passive.max_eject_ms, passive.base_eject_ms
        );
        report("/spec/passiveHealth/maxEjectMs", message);
    }
}
