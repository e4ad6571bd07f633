//! A home router that maps ports, by the protocols it is told to speak.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// Lifetime it grants, in seconds, so that tests see renewals.
const LIFETIME: u32 = 2;

const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

/// What the router does when it is asked.
#[derive(Default)]
pub(crate) struct Manners {
    pub(crate) pcp: bool,
    pub(crate) natpmp: bool,
    pub(crate) upnp: bool,
    /// Answers everything with nonsense.
    pub(crate) junk: bool,
    /// Knows only UPnP mappings without a lease.
    pub(crate) permanent_only: bool,
    /// External ports of others.
    pub(crate) taken: Vec<u16>,
}

pub(crate) struct Router {
    manners: Manners,
    outside: Mutex<Ipv4Addr>,
    /// External ports by internal ones.
    mapped: Mutex<BTreeMap<u16, u16>>,
    requests: AtomicUsize,
    late_pcp: AtomicBool,
}

impl Router {
    pub(crate) fn new(outside: Ipv4Addr, manners: Manners) -> Self {
        Self {
            manners,
            outside: Mutex::new(outside),
            mapped: Mutex::default(),
            requests: AtomicUsize::new(0),
            late_pcp: AtomicBool::new(false),
        }
    }

    /// Internal and external ports.
    pub(crate) fn mapped(&self) -> Vec<(u16, u16)> {
        let mapped = self.mapped.lock().expect("no test panics with it");
        mapped.iter().map(|(a, b)| (*a, *b)).collect()
    }

    /// Requests for a mapping that were granted.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn set_outside(&self, ip: Ipv4Addr) {
        *self.outside.lock().expect("no test panics with it") = ip;
    }

    fn outside(&self) -> Ipv4Addr {
        *self.outside.lock().expect("no test panics with it")
    }

    /// Speaks PCP from now on.
    pub(crate) fn answer_pcp(&self) {
        self.late_pcp.store(true, Ordering::Relaxed);
    }

    /// Maps a port, or takes the mapping back if the lifetime is 0.
    fn map(&self, internal: u16, external: u16, lifetime: u32) {
        let mut mapped = self.mapped.lock().expect("no test panics with it");
        if lifetime == 0 {
            mapped.remove(&internal);
        } else {
            mapped.insert(internal, external);
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The answer to a datagram to port 5351.
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        if self.manners.junk {
            return Some(vec![0xa5; request.len()]);
        }
        let word = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
        let long = |at: usize| (u32::from(word(at)) << 16) | u32::from(word(at + 2));
        match request {
            // PCP, MAP (RFC 6887, sections 7.1 and 11.1).
            [2, 1, ..] if request.len() == 60 => {
                if !self.manners.pcp && !self.late_pcp.load(Ordering::Relaxed) {
                    // RFC 6886, section 3.5: unsupported version.
                    return self.manners.natpmp.then(|| vec![0, 129, 0, 1, 0, 0, 0, 1]);
                }
                assert_eq!(request[36], 17, "UDP");
                let lifetime = long(4);
                let (internal, external) = (word(40), word(42));
                self.map(internal, external, lifetime);
                let mut answer = vec![2, 0x81, 0, 0];
                answer.extend(lifetime.min(LIFETIME).to_be_bytes());
                answer.extend([0, 0, 0, 1]);
                answer.extend([0; 12]);
                answer.extend(&request[24..42]);
                answer.extend(external.to_be_bytes());
                answer.extend(self.outside().to_ipv6_mapped().octets());
                Some(answer)
            }
            [0, 0] if self.manners.natpmp => {
                let mut answer = vec![0, 128, 0, 0, 0, 0, 0, 1];
                answer.extend(self.outside().octets());
                Some(answer)
            }
            // NAT-PMP, UDP (RFC 6886, section 3.3).
            [0, 1, ..] if self.manners.natpmp && request.len() == 12 => {
                let (internal, external, lifetime) = (word(4), word(6), long(8));
                self.map(internal, external, lifetime);
                let mut answer = vec![0, 129, 0, 0, 0, 0, 0, 1];
                answer.extend(&request[4..8]);
                answer.extend(lifetime.min(LIFETIME).to_be_bytes());
                Some(answer)
            }
            _ => None,
        }
    }

    /// The answer to an HTTP request: status and body.
    fn http(&self, request: &str) -> (u16, String) {
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
        if head.starts_with("GET /root.xml ") {
            return (200, description());
        }
        if head.starts_with("GET /scpd.xml ") {
            return (200, schema());
        }
        let value = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            rest.split_once('<').map(|(value, _)| value.to_owned())
        };
        let number = |name: &str| value(name).and_then(|text| text.parse::<u32>().ok());
        let port = |name: &str| number(name).and_then(|port| u16::try_from(port).ok());
        if head.contains("#GetExternalIPAddress") {
            let ip = self.outside();
            let inside = format!("<NewExternalIPAddress>{ip}</NewExternalIPAddress>");
            return (200, done("GetExternalIPAddress", &inside));
        }
        if head.contains("#AddPortMapping") {
            let (Some(internal), Some(external), Some(lease)) = (
                port("NewInternalPort"),
                port("NewExternalPort"),
                number("NewLeaseDuration"),
            ) else {
                return (500, failed(402));
            };
            assert_eq!(value("NewProtocol").as_deref(), Some("UDP"));
            assert_eq!(value("NewInternalClient").as_deref(), Some(super::HOST));
            if self.manners.taken.contains(&external) {
                return (500, failed(718));
            }
            if self.manners.permanent_only && lease != 0 {
                return (500, failed(725));
            }
            self.map(internal, external, 1);
            return (200, done("AddPortMapping", ""));
        }
        if head.contains("#DeletePortMapping") {
            let external = port("NewExternalPort");
            let mut mapped = self.mapped.lock().expect("no test panics with it");
            mapped.retain(|_, known| Some(*known) != external);
            return (200, done("DeletePortMapping", ""));
        }
        (404, String::new())
    }
}

fn description() -> String {
    format!(
        "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
         <deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>\
         <deviceList><device><deviceList><device><serviceList><service>\
         <serviceType>{SERVICE}</serviceType><controlURL>/control</controlURL>\
         <SCPDURL>/scpd.xml</SCPDURL></service></serviceList></device></deviceList></device>\
         </deviceList></device></root>"
    )
}

fn schema() -> String {
    let action = |name: &str, arguments: &[&str]| {
        let arguments: String = arguments
            .iter()
            .map(|name| {
                format!("<argument><name>{name}</name><direction>in</direction></argument>")
            })
            .collect();
        format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
    };
    let add = [
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ];
    format!(
        "<?xml version=\"1.0\"?><scpd xmlns=\"urn:schemas-upnp-org:service-1-0\"><actionList>{}{}{}\
         </actionList></scpd>",
        action("AddPortMapping", &add),
        action("DeletePortMapping", &add[..3]),
        action("GetExternalIPAddress", &[]),
    )
}

fn envelope(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\">\
         <s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn done(action: &str, inside: &str) -> String {
    envelope(&format!(
        "<u:{action}Response xmlns:u=\"{SERVICE}\">{inside}</u:{action}Response>"
    ))
}

fn failed(code: u16) -> String {
    envelope(&format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
         <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>{code}</errorCode>\
         <errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
    ))
}

/// Serves until dropped; says when it has begun.
pub(crate) async fn serve(router: Arc<Router>, up: mpsc::Sender<()>) {
    let control = UdpSocket::bind((super::GATEWAY, 5351)).await.expect("free");
    let ssdp = UdpSocket::bind("0.0.0.0:1900").await.expect("free");
    let here: Ipv4Addr = super::GATEWAY.parse().expect("literal");
    ssdp.join_multicast_v4([239, 255, 255, 250].into(), here)
        .expect("multicast");
    let http = TcpListener::bind((super::GATEWAY, 5000))
        .await
        .expect("free");
    up.send(()).expect("awaited");
    tokio::join!(
        ports(&router, control),
        searches(&router, ssdp),
        pages(&router, http),
    );
}

async fn ports(router: &Router, socket: UdpSocket) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(answer) = router.answer(&buffer[..length]) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn searches(router: &Router, socket: UdpSocket) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((_, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let place = match (router.manners.upnp, router.manners.junk) {
            (true, _) => format!("http://{}:5000/root.xml", super::GATEWAY),
            // Somebody who would have us ask somewhere else.
            (false, true) => "http://127.0.0.1:5000/root.xml".to_owned(),
            (false, false) => continue,
        };
        let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {place}\r\nST: {SERVICE}\r\n\r\n");
        let _ = socket.send_to(answer.as_bytes(), from).await;
    }
}

async fn pages(router: &Router, listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            // One after the other: the client asks no two things at once.
            let _ = page(router, stream).await;
        }
    }
}

async fn page(router: &Router, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await?;
        request.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&request).to_string();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let ours = name.eq_ignore_ascii_case("content-length");
                ours.then(|| value.trim().parse::<usize>().ok())?
            });
            body.len() >= length.unwrap_or(0)
        });
        if whole || length == 0 {
            let (status, body) = router.http(&text);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            return stream.write_all(answer.as_bytes()).await;
        }
    }
}
