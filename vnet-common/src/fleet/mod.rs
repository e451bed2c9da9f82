//! What the hosts of a fleet share through etcd: where it lies, and what it says.
//!
//! ```text
//! /vnet/v1/desired/resources/<Kind>/<name>     Stored       written by operators only
//! /vnet/v1/desired/overrides/<lb>/<member>     MemberOverride      "
//! /vnet/v1/desired/hosts/<host>                Registration        "
//! /vnet/v1/desired/rollouts/<name>             Rollout             "
//! /vnet/v1/desired/serial                      the operator's name; written with each of these
//! /vnet/v1/state/alive/<host>                  HostState    written by that host only; gone when it is silent for its lease
//! /vnet/v1/state/applied/<host>                Applied             "
//! /vnet/v1/state/global/<host>                 Global              "      of the elected host: the fleet's load
//! /vnet/v1/state/health/<host>                 HealthReport        "
//! /vnet/v1/state/endpoints/<host>/<endpoint>   EndpointState       "      lingers: see `LINGER_SECONDS`
//! /vnet/v1/state/identities/<host>/<number>    IdentityLabels      "      lingers
//! /vnet/v1/state/moving/<host>/<endpoint>/<n>  a piece of a FlowExport    "
//! /vnet/load/v1/<host>                         LoadReport          "      read by the elected host only
//! ```
//!
//! Every value is JSON; what a reader does not know it leaves alone. A host writes below its own name only, so that nobody has to be
//! trusted with another's state; what has to be decided for all is decided by rules that give every reader the same answer: the elected
//! host is the one that has been alive for the longest ([`HostState`]'s create revision), and an endpoint that two hosts claim is where it
//! was claimed first, unless its resource names the host; who holds it, those claims say that know of the latest hold or release
//! ([`EndpointState::turn`]).

mod keys;
mod records;

pub use keys::*;
pub use records::*;
