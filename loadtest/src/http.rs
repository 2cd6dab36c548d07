//! The HTTP that tests need: responses, their heads parsed by httparse, and GET. A client library would hide what tests
//! look at: the socket that a response comes on, and the bytes behind the head of a 101.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longest response head, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most headers of a response.
const HEADERS_MAX: usize = 64;

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Lower-case names and their values.
    pub headers: Vec<(String, String)>,
    /// The body, or the bytes behind the head of a 101.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Reads a response: its head, and unless it is a 101, its body as given by Content-Length, or up to the end.
    ///
    /// # Errors
    /// If the connection fails or ends early, or the response is not HTTP/1.1.
    pub fn read(stream: &mut impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        let (mut response, head_len) = loop {
            if let Some(found) = Self::parse_head(&bytes)? {
                break found;
            }
            ensure!(bytes.len() < HEAD_BYTES_MAX, "the head is too long");
            let count = read_some(stream, &mut bytes)?;
            ensure!(count > 0, "the connection ended within the head, after {} bytes", bytes.len());
        };
        response.body = bytes.split_off(head_len);
        if response.status != 101 {
            response.read_body(stream)?;
        }
        Ok(response)
    }

    /// A response without its body, and the length of its head; `None` if the head has not arrived whole.
    fn parse_head(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(len) = head.parse(bytes)? else { return Ok(None) };
        ensure!(head.version == Some(1), "not HTTP/1.1");
        let header = |header: &httparse::Header<'_>| {
            let value = std::str::from_utf8(header.value).context("a header that is not UTF-8")?;
            Ok((header.name.to_ascii_lowercase(), value.to_owned()))
        };
        let headers = head.headers.iter().map(header).collect::<Result<_>>()?;
        let status = head.code.context("no status code")?;
        Ok(Some((Self { status, headers, body: Vec::new() }, len)))
    }

    fn read_body(&mut self, stream: &mut impl Read) -> Result<()> {
        let length = self.header("content-length").map(str::parse::<usize>).transpose()?;
        while length.is_none_or(|length| self.body.len() < length) {
            if read_some(stream, &mut self.body)? == 0 {
                break;
            }
        }
        ensure!(length.is_none_or(|length| self.body.len() == length), "the length differs from Content-Length");
        Ok(())
    }
}

fn read_some(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Result<usize> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    bytes.extend_from_slice(&buffer[..count]);
    Ok(count)
}

/// GETs a path on a new connection.
///
/// # Errors
/// If the connection fails, or the response does not come `within` the time.
pub fn get(address: SocketAddr, path: &str, within: Duration) -> Result<HttpResponse> {
    send(address, &Request { method: "GET", path, headers: &[], body: "" }, within)
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Such as `GET`; not `HEAD`, whose response has a length without a body.
    pub method: &'a str,
    /// With the query.
    pub path: &'a str,
    /// Whole lines, beside those that every request has.
    pub headers: &'a [&'a str],
    /// Sent with its length, unless it is empty.
    pub body: &'a str,
}

/// Sends a request on a new connection.
///
/// # Errors
/// If the connection fails, or the response does not come `within` the time.
pub fn send(address: SocketAddr, request: &Request<'_>, within: Duration) -> Result<HttpResponse> {
    let mut stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(within))?;
    let Request { method, path, headers, body } = request;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    headers.iter().for_each(|line| text.extend([line, "\r\n"]));
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.extend(["\r\n", body]);
    stream.write_all(text.as_bytes())?;
    HttpResponse::read(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_at_its_content_length_or_at_the_end_of_the_connection() {
        let with_length = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno";
        let response = HttpResponse::read(&mut &with_length[..]).unwrap();
        assert_eq!((response.status, response.header("retry-after"), response.text().as_str()), (503, Some("1"), "no"));

        let to_the_end = b"HTTP/1.1 200 OK\r\n\r\n{\"a\":1}";
        assert_eq!(HttpResponse::read(&mut &to_the_end[..]).unwrap().json()["a"], 1);
        assert!(HttpResponse::read(&mut &with_length[..with_length.len() - 1]).is_err());
        assert!(HttpResponse::read(&mut &b"HTTP/1.1 200 OK\r\n"[..]).is_err());
    }
}
