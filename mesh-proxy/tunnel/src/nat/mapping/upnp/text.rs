//! What is said to a router that speaks UPnP, and what it answers: SSDP, HTTP and SOAP as far as opening ports needs
//! them. Pure. A full XML reader would be larger than all of this, and nothing here needs one: elements are found by
//! name, and what is found is used only if it is a number, an address, or a path on the router itself.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The longest description or answer.
pub(super) const LONGEST: usize = 128 << 10;

/// What routers call themselves, newest first.
pub(super) const SEARCHED: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
];

/// The question who is a router.
pub(super) fn search(target: &str) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
    )
}

/// A page on the router.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Page {
    pub(super) at: SocketAddrV4,
    pub(super) path: String,
}

impl Page {
    /// Of a URL; none unless it is on that host: nobody else on the LAN shall be asked in its name.
    pub(super) fn parse(url: &str, host: Ipv4Addr) -> Option<Self> {
        let rest = url.trim().strip_prefix("http://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, port) = authority.split_once(':').unwrap_or((authority, "80"));
        let at = SocketAddrV4::new(name.parse().ok()?, port.parse().ok().filter(|p| *p != 0)?);
        let path = format!("/{path}");
        (*at.ip() == host && is_plain(&path)).then_some(Self { at, path })
    }

    /// Of a URL or a path on the same server.
    fn join(&self, link: &str) -> Option<Self> {
        let link = link.trim();
        if link.starts_with("http://") {
            return Self::parse(link, *self.at.ip());
        }
        let path = if link.starts_with('/') { link.to_owned() } else { format!("/{link}") };
        is_plain(&path).then_some(Self { at: self.at, path })
    }
}

/// Whether a path can stand in a request line.
fn is_plain(path: &str) -> bool {
    path.len() <= 512 && path.bytes().all(|b| b.is_ascii_graphic())
}

/// Where a router that answered a search describes itself.
pub(super) fn location(answer: &[u8], host: Ipv4Addr) -> Option<Page> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut lines = text.lines();
    lines.next().filter(|l| l.starts_with("HTTP/1.1 200"))?;
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    };
    Page::parse(&lines.find_map(named)?, host)
}

/// A service that opens ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Service {
    pub(super) page: Page,
    pub(super) kind: String,
}

/// The service of a description that opens ports.
pub(super) fn service(description: &str, from: &Page) -> Option<Service> {
    let opens = |kind: &str| kind.contains(":WANIPConnection:") || kind.contains(":WANPPPConnection:");
    description.split("<service>").skip(1).find_map(|block| {
        let block = block.split("</service>").next()?;
        let kind = element(block, "serviceType").map(str::trim).filter(|k| opens(k))?;
        let page = from.join(element(block, "controlURL")?)?;
        let word = |b: u8| b.is_ascii_alphanumeric() || b":-._".contains(&b);
        (kind.len() < 128 && kind.bytes().all(word)).then(|| Service { page, kind: kind.to_owned() })
    })
}

/// The text of the first element of that name.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let rest = text.get(start..)?;
    rest.get(..rest.find(&format!("</{name}>"))?)
}

/// A request to a service.
pub(super) fn call(service: &Service, action: &str, arguments: &[(&str, String)]) -> String {
    let arguments: String = arguments.iter().map(|(k, v)| format!("<{k}>{v}</{k}>")).collect();
    let kind = &service.kind;
    let body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">\
         {arguments}</u:{action}></s:Body></s:Envelope>\r\n"
    );
    let Page { at, path } = &service.page;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {at}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         SOAPAction: \"{kind}#{action}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The request for a description.
pub(super) fn get(page: &Page) -> String {
    format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", page.path, page.at)
}

/// Status and body of an answer that has ended.
pub(super) fn body(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.lines().any(|l| {
        let l = l.to_ascii_lowercase();
        l.starts_with("transfer-encoding:") && l.contains("chunked")
    });
    Some((status, if chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(mut rest: &str) -> String {
    let mut out = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = size.split(';').next().and_then(|s| usize::from_str_radix(s.trim(), 16).ok()).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|c| !c.is_empty()) else { break };
        out += chunk;
        rest = after.get(size..).map_or("", |r| r.trim_start_matches("\r\n"));
    }
    out
}

/// Whether all of an answer with a stated length is there.
pub(super) fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|l| answer.len() >= end.saturating_add(4).saturating_add(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn page(path: &str) -> Page {
        Page { at: SocketAddrV4::new(HOST, 5000), path: path.to_owned() }
    }

    const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/ctl/L3F</controlURL>\
        </service></serviceList><deviceList><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType>\
        <controlURL>ctl/IPConn</controlURL></service></serviceList></device></deviceList></device></root>";

    #[test]
    fn a_router_is_found_and_its_service() {
        let answer = b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.168.1.1:5000/root.xml\r\n\r\n";
        let found = location(answer, HOST).unwrap();
        assert_eq!(found, page("/root.xml"));
        let service = service(DESCRIPTION, &found).unwrap();
        assert_eq!(service.page, page("/ctl/IPConn"));
        assert_eq!(service.kind, "urn:schemas-upnp-org:service:WANIPConnection:2");
        let call = call(&service, "DeletePortMapping", &[("NewExternalPort", "7".to_owned())]);
        let (head, body) = call.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(element(body, "NewExternalPort"), Some("7"));
    }

    #[test]
    fn nobody_but_the_router_is_asked() {
        for url in [
            "http://192.168.1.66:5000/root.xml",
            "https://192.168.1.1/x",
            "http://router.lan/x",
            "http://192.168.1.1:0/x",
            "http://192.168.1.1:99999/x",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/a\r\nX-Evil: 1",
        ] {
            assert_eq!(Page::parse(url, HOST), None, "{url}");
        }
        assert_eq!(Page::parse("http://192.168.1.1", HOST).unwrap().at.port(), 80);
        let elsewhere = DESCRIPTION.replace("ctl/IPConn", "http://10.0.0.1/ctl");
        assert_eq!(service(&elsewhere, &page("/")), None);
    }

    #[test]
    fn bodies_are_read_with_and_without_chunks() {
        let plain = b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nhello";
        assert!(is_whole(plain) && !is_whole(&plain[..plain.len() - 1]));
        assert_eq!(body(plain), Some((500, "hello".to_owned())));
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
        assert_eq!(body(chunked), Some((200, "hello".to_owned())));
        assert_eq!(body(b"nonsense"), None);
    }

    #[test]
    fn fuzz_what_a_router_says() {
        let seeds = [
            DESCRIPTION.as_bytes().to_vec(),
            b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n0\r\n\r\n".to_vec(),
        ];
        mesh_testkit::fuzz::run("upnp_answers", &seeds, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let found = service(&text, &page("/"));
            if let Some(found) = &found {
                let request = call(found, "X", &[]);
                assert_eq!(*found.page.at.ip(), HOST);
                assert_eq!(request.matches("\r\n\r\n").count(), 1);
            }
            (location(bytes, HOST), found, body(bytes).map(|b| b.0), is_whole(bytes))
        });
    }
}
