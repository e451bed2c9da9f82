//! Packet cases: every row runs the pipeline on the host and the loaded programs in the kernel, and both must do exactly
//! what the row says: verdict, bytes, and every counter.
//!
//! Needs root (programs are loaded into the kernel, devices live in a network namespace of their own).
//! `VNET_LONG=1` runs the differential fuzz for 1,000,000 packets instead of 20,000.

mod cases {
    mod kernel;
    mod offload;
    mod packet;
    mod redirect;
    mod row;
    mod rules;
    mod snapshot;
    mod sums;
    mod tcp;
    mod udp;
    mod world;

    mod answered;
    mod answers;
    mod balanced;
    mod budget;
    mod classes;
    mod errors;
    mod evaluation;
    mod fragments;
    mod fuzz;
    mod guard;
    mod hairpin;
    mod judged_again;
    mod limits;
    mod malformed;
    mod members;
    mod neighbors;
    mod picking;
    mod policy;
    mod quarantine;
    mod stateful;
    mod wire;
}
