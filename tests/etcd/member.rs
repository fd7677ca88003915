//! Stand-ins for members of a cluster. The test decides what they answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
use serde_json::{Value, json};

/// Starts a server that calls `serve` for each connection, on a thread of its own. Returns its port.
pub(crate) fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Returns a port on which nothing listens, and that no other program gets while this process lives.
pub(crate) fn dead_port() -> u16 {
    let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::try_from(getsockname(&socket).unwrap()).unwrap();
    std::mem::forget(socket);
    address.port()
}

/// Starts a server that accepts connections and says nothing. Returns its port.
pub(crate) fn silent() -> u16 {
    server(|mut stream| _ = stream.read_to_end(&mut Vec::new()))
}

/// Starts a server that answers with `start`, and then one byte every 20 ms. Returns its port.
pub(crate) fn trickling(start: &'static [u8]) -> u16 {
    server(move |mut stream| {
        _ = stream.read(&mut [0; 4096]);
        _ = stream.write_all(start);
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// Starts a server that answers this many requests with the JSON that `answer` returns for their
/// path. Returns its port.
pub(crate) fn answering(requests: usize, answer: impl Fn(&str) -> Value + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            let Ok(stream) = stream else { return };
            let mut reader = BufReader::new(stream);
            let mut head = Vec::new();
            while head.last().is_none_or(|line: &String| !line.trim().is_empty()) {
                head.push(String::new());
                if reader.read_line(head.last_mut().unwrap()).unwrap_or_default() == 0 {
                    break;
                }
            }
            let path = head[0].split(' ').nth(1).unwrap_or_default();
            let length = head.iter().find_map(|line| {
                line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
            });
            _ = reader.read_exact(&mut vec![0; length.unwrap_or_default()]);
            let body = answer(path).to_string();
            let (length, close) = (body.len(), "Connection: close");
            let head = format!("HTTP/1.1 200 OK\r\n{close}\r\nContent-Length: {length}\r\n\r\n");
            _ = reader.get_mut().write_all((head + &body).as_bytes());
        }
    });
    port
}

/// Returns what the only member of a cluster answers that grants every lock, in term 2.
pub(crate) fn generous(cluster: &str, path: &str) -> Value {
    let header = json!({ "cluster_id": cluster, "raft_term": "2", "revision": "5" });
    match path {
        "/v3/lease/grant" => json!({ "header": header, "ID": "7", "TTL": "5" }),
        "/v3/lease/keepalive" => json!({ "result": { "header": header, "ID": "7", "TTL": "5" } }),
        "/v3/kv/txn" => json!({
            "header": header,
            "succeeded": true,
            "responses": [{ "response_range": { "kvs": [{ "create_revision": "5" }] } }],
        }),
        _ => json!({ "header": header }),
    }
}
