//! A router that opens ports when a host of its site asks: miniupnpd, which speaks UPnP IGD, NAT-PMP and PCP, with the
//! kernel's own translation for what it opens. The site's own kind of translation goes on for all else. Where the site has
//! IPv6, PCP opens its firewall too.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{LabError, World, keeper::LOGS, tools};

/// The tool, and the package that has it.
pub(super) const TOOL: (&str, &str) = ("miniupnpd", "miniupnpd-nftables");
/// What the daemon fills. What it translates must not be translated by the lab's program too: a mark leads the answers
/// past it.
pub(super) const RULES: &str = "table inet mapping {
    chain to { type nat hook prerouting priority dstnat; }
    chain from { type nat hook postrouting priority srcnat + 1; }
    chain allowed { }
    chain through { type filter hook forward priority filter; policy accept; jump allowed; }
    chain past { type filter hook prerouting priority -90; ct status dnat meta mark set 0x51; }
}
";
/// The firewall of IPv6 lets in what the daemon allows beside answers.
pub(super) const RULES_V6: &str = "table inet mapping {
    chain through {
        meta nfproto ipv6 iifname \"wan\" ct state established,related accept;
        meta nfproto ipv6 iifname \"wan\" meta l4proto != ipv6-icmp drop;
    }
}
";
/// Routes around the lab's program, see [`RULES`].
pub(super) const PAST: &str = "rule add pref 4 fwmark 0x51 lookup main";
/// A daemon that ended is started again after this, as a router comes back from a reboot.
const REBOOT: Duration = Duration::from_millis(300);

/// Which ways of asking a router knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMapping {
    /// None: it opens nothing.
    #[default]
    Off,
    /// All of them.
    All,
    /// NAT-PMP and PCP only.
    Pcp,
    /// UPnP only.
    Upnp,
}

impl PortMapping {
    /// Its name in WORLD.yaml.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::All => "all",
            Self::Pcp => "pcp",
            Self::Upnp => "upnp",
        }
    }
}

/// What the program is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) offer: PortMapping,
    pub(super) lan: Ipv4Net,
    /// The router's inner address.
    pub(super) inside: Ipv4Addr,
    /// The site has IPv6.
    pub(super) six: bool,
}

impl Settings {
    fn text(&self) -> String {
        let yes = |on: bool| if on { "yes" } else { "no" };
        format!(
            "ext_ifname=wan\nlistening_ip=lan\nipv6_disable={}\nport=0\nhttp_port=0\nenable_natpmp={}\nenable_upnp={}\n\
             secure_mode=yes\nsystem_uptime=no\nnotify_interval=60\nmin_lifetime=120\nmax_lifetime=86400\n\
             upnp_table_name=mapping\nupnp_nat_table_name=mapping\nupnp_forward_chain=allowed\nupnp_nat_chain=to\n\
             upnp_nat_postrouting_chain=from\nfriendly_name=lab\nuuid=6f1c1a0e-3f5b-4d11-9f53-7c5c1d2a4e10\n\
             allow 1024-65535 {} 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes(!self.six),
            yes(matches!(self.offer, PortMapping::All | PortMapping::Pcp)),
            yes(matches!(self.offer, PortMapping::All | PortMapping::Upnp)),
            self.lan,
        )
    }
}

/// Runs the daemon, again whenever it ends; each time nothing is open.
///
/// # Errors
/// When the daemon is missing or its settings cannot be written.
pub(super) fn mapping_main(settings: &str) -> Result<(), LabError> {
    let settings: Settings = serde_json::from_str(settings)
        .map_err(|e| LabError::Invalid(vec![format!("the router's port mapping: {e}")]))?;
    let dir = PathBuf::from(std::env::var_os(LOGS).unwrap_or_default());
    let program = tools::path(TOOL.0).ok_or(LabError::Tool { tool: TOOL.0, package: TOOL.1 })?;
    let name = format!("mapping-{}", settings.inside);
    let (file, pid) = (dir.join(format!("{name}.conf")), dir.join(format!("{name}.pid")));
    std::fs::write(&file, settings.text()).map_err(LabError::file("write", &file))?;
    println!("ready");
    // Nobody may be listening.
    let _gone = std::io::stdout().flush();
    loop {
        let mut command = Command::new(&program);
        command.args(["-d", "-f"]).arg(&file).arg("-P").arg(dir.join(format!("{name}.daemon")));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().map_err(LabError::file("run", Path::new(&program)))?;
        std::fs::write(&pid, child.id().to_string()).map_err(LabError::file("write", &pid))?;
        let ended = child.wait().map_err(LabError::file("wait for", Path::new(&program)))?;
        eprintln!("the router reboots: {ended}");
        let flush =
            "flush chain inet mapping to\nflush chain inet mapping from\nflush chain inet mapping allowed\n";
        tools::run("router", "nft", &["-f", "-"], flush)?;
        std::thread::sleep(REBOOT);
    }
}

impl World {
    /// Reboots what opens ports on a site's router: all of them are closed, its clock starts anew.
    ///
    /// # Errors
    /// When the site has none.
    pub fn reboot_port_mapping(&self, site: &str) -> Result<(), LabError> {
        let place = self.place(site)?;
        let inside = self.spec().sites.get(site).and_then(|s| s.lan.hosts().next());
        let inside = inside.ok_or_else(|| LabError::Process(format!("{site} is no site")))?;
        let pid = self.dir().join("logs").join(format!("mapping-{inside}.pid"));
        let script = format!("kill -9 $(cat {})", pid.display());
        let done = place.exec(&["sh", "-c", &script])?;
        if done.ok() {
            return Ok(());
        }
        Err(LabError::Process(format!("{site}: {}", done.stderr)))
    }
}
