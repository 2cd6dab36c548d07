//! HTTP as the tests need it: an answer, read strictly, and a GET.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The longest head of an answer that is read, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body; for a 101 what came right behind the head.
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
    /// Where it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Reads an answer: its head, and unless it is a 101, its body as Content-Length says, or else up to the end.
    ///
    /// # Errors
    /// Where the connection fails, ends early, or what comes is not HTTP/1.1.
    pub fn read(stream: &mut impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            ensure!(bytes.len() < HEAD_BYTES_MAX, "a head without an end");
            ensure!(read_some(stream, &mut bytes)? > 0, "the end within a head, after {} bytes", bytes.len());
        };
        let body = bytes.split_off(head_end + 4);
        let head = std::str::from_utf8(&bytes[..head_end]).context("a head that is not UTF-8")?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).context("no HTTP/1.1 status line")?;
        let status = status.get(..3).context("no status code")?.parse()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.map(header).collect::<Result<_>>()?;
        let mut answer = Self { status, headers, body };
        if status != 101 {
            answer.read_body(stream)?;
        }
        Ok(answer)
    }

    fn read_body(&mut self, stream: &mut impl Read) -> Result<()> {
        let length = self.header("content-length").map(str::parse::<usize>).transpose()?;
        while length.is_none_or(|length| self.body.len() < length) {
            if read_some(stream, &mut self.body)? == 0 {
                break;
            }
        }
        ensure!(length.is_none_or(|length| self.body.len() == length), "another length than Content-Length says");
        Ok(())
    }
}

fn read_some(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Result<usize> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    bytes.extend_from_slice(&buffer[..count]);
    Ok(count)
}

/// GETs a path on a connection of its own.
///
/// # Errors
/// Where the connection fails or the answer doesn't come `within` the time.
pub fn get(address: SocketAddr, path: &str, within: Duration) -> Result<HttpResponse> {
    let mut stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(within))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    HttpResponse::read(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_by_its_length_or_to_its_end() {
        let with_length = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno";
        let answer = HttpResponse::read(&mut &with_length[..]).unwrap();
        assert_eq!((answer.status, answer.header("retry-after"), answer.text().as_str()), (503, Some("1"), "no"));

        let to_the_end = b"HTTP/1.1 200 OK\r\n\r\n{\"a\":1}";
        assert_eq!(HttpResponse::read(&mut &to_the_end[..]).unwrap().json()["a"], 1);
        assert!(HttpResponse::read(&mut &with_length[..with_length.len() - 1]).is_err());
        assert!(HttpResponse::read(&mut &b"HTTP/1.1 200 OK\r\n"[..]).is_err());
    }
}
