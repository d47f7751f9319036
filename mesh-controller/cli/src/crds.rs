//! `meshctl crds`: the definitions that a cluster needs.

use std::fs;

use anyhow::{Context, Result};

use crate::{Outcome, args, args::Format, install::chart, output};

pub(crate) fn run(args: &args::Crds) -> Result<Outcome> {
    let crds = istio_compat::crd::all();
    if let Some(dir) = &args.write {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        for crd in &crds {
            let file = dir.join(istio_compat::crd::file_name(crd));
            fs::write(&file, istio_compat::crd::yaml(crd))
                .with_context(|| format!("write {}", file.display()))?;
        }
        for (name, text) in chart::own_definitions() {
            let file = dir.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        return Ok(Outcome::Fine);
    }
    let own = chart::own_definitions().map(|(_, text)| text.to_owned());
    let all = crds.iter().map(istio_compat::crd::yaml).chain(own).collect::<Vec<_>>().join("---\n");
    output::print(Format::Table, &(), || all)?;
    Ok(Outcome::Fine)
}
