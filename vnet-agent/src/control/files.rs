//! From files to resources. (Until `resource::parse` is there.)

use vnet_common::api::{Fault, File};

use crate::resource::Resource;

/// Every resource in the files, or every fault.
pub fn parse(files: &[File]) -> Result<Vec<Resource>, Vec<Fault>> {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for file in files {
        match serde_saphyr::from_multiple::<Resource>(&file.text) {
            Ok(resources) => found.extend(resources),
            Err(e) => {
                faults.push(Fault { file: file.name.clone(), line: 0, column: 0, message: e.to_string(), snippet: String::new() })
            }
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}
