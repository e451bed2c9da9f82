//! Prints the JSON schema of the resources: what `policies/schema.json` holds.

fn main() {
    println!("{:#}", vnet_agent::resource::schema());
}
