//! The load balancer's rows in the real maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::datapath::{Datapath, wait_for_programs};
use crate::lb::apply::Rows;
use crate::lb::live::{Live, LiveGroup, Write, table_blocks};
use crate::lb::plan::Limits;
use crate::lb::table;

impl Rows for Arc<Datapath> {
    fn limits(&self) -> Result<Limits> {
        let size = |name| self.maps().capacity(name).with_context(|| format!("there is no map {name}"));
        Ok(Limits { vips: size("VIPS")?, groups: size("GROUPS")?, members: size("MEMBERS")?, blocks: size("MAGLEV")? })
    }

    fn read(&self) -> Result<Live> {
        let maps = self.maps();
        let mut groups = BTreeMap::new();
        for (index, row) in maps.groups() {
            let fingerprint = match table_blocks(row.table).last() {
                Some(last) => maps.maglev(last, 1)?.first().map_or(0, table::fingerprint_in),
                None => 0,
            };
            groups.insert(index, LiveGroup { row, fingerprint });
        }
        Ok(Live { vips: maps.vips()?.into_iter().collect(), groups, members: maps.members(), filter: maps.filter_words() })
    }

    fn write(&self, write: &Write) -> Result<()> {
        let maps = self.maps();
        match write {
            Write::Blocks { first, blocks } => maps.put_maglev(*first, blocks),
            Write::ResetCounters { row } => maps.reset_member_counters(*row),
            Write::Member { row, value } => maps.put_member(*row, value),
            Write::Group { row, value } => maps.put_group(*row, &value.row),
            Write::Vip { key, value: Some(value) } => maps.put_vip(key, value),
            Write::Vip { key, value: None } => maps.remove_vip(key).map(drop),
            Write::Filter { word, bits } => maps.set_filter_word(*word, *bits),
        }
    }

    fn bump_generation(&self) -> Result<()> {
        self.maps().bump_generation().map(drop)
    }

    fn wait_for_programs(&self) {
        wait_for_programs();
    }
}
