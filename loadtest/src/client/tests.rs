//! The clients against a small server made with tungstenite.

use std::net::TcpListener;
use std::thread;

use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::CloseFrame;

use super::raw::{Raw, RawFrame, Sent, opcode};
use super::*;

/// A server for one client. `serve` gets the connection and the request's query.
fn server<F>(serve: F) -> (String, thread::JoinHandle<()>)
where
    F: FnOnce(WebSocket<TcpStream>, String) + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let mut query = String::new();
        #[expect(clippy::result_large_err, reason = "tungstenite's callback has this type")]
        let keep = |request: &Request, response: Response| {
            request.uri().query().unwrap().clone_into(&mut query);
            Ok(response)
        };
        let (stream, _) = listener.accept().unwrap();
        let socket = tungstenite::accept_hdr(stream, keep).unwrap();
        serve(socket, query);
    });
    (url, thread)
}

#[test]
fn a_client_keeps_messages_in_order_and_answers_pings_and_closes() {
    let (url, server) = server(|mut socket, query| {
        assert!(query.starts_with("assessmentId=a%20%C3%A9&token="), "{query}");
        socket.send(tungstenite::Message::text(r#"{"type":"connected"}"#)).unwrap();
        socket.send(tungstenite::Message::Ping("beat".into())).unwrap();
        socket.send(tungstenite::Message::text(r#"{"type":"x","b":1.50,"a":"\u00e9"}"#)).unwrap();
        assert_eq!(socket.read().unwrap(), tungstenite::Message::Pong("beat".into()));
        assert_eq!(socket.read().unwrap().to_text().unwrap(), "hello");
        let frame = CloseFrame { code: 1012.into(), reason: "moved".into() };
        socket.close(Some(frame)).unwrap();
        assert!(socket.read().unwrap().is_close(), "the client answers");
        assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    });
    let mut client = Ask::to(&url).assessment("a é").open();
    client.expect_type("connected");
    let message = client.expect_type("x");
    assert_eq!(message.fields(), [("b".into(), "1.50".into()), ("a".into(), r#""\u00e9""#.into())]);
    assert_eq!(client.pings(), 1);
    client.send("hello");
    assert_eq!(client.expect_close(), (1012, "moved".into()));
    server.join().unwrap();
}

#[test]
fn a_raw_client_sends_and_receives_the_frames_of_its_test() {
    let (url, server) = server(|mut socket, _| {
        assert_eq!(socket.read().unwrap().to_text().unwrap(), "two parts");
        assert_eq!(socket.read().unwrap().to_text().unwrap().len(), 300);
        socket.send(tungstenite::Message::text("x".repeat(70_000))).unwrap();
        assert!(socket.read().is_err(), "an unmasked frame");
    });
    let mut raw = Raw::upgraded(&Ask::to(&url));
    let (first, rest) =
        (RawFrame::new(opcode::TEXT, "two ").unfinished(), RawFrame::new(opcode::CONTINUATION, "parts"));
    raw.send_frames(&[first, rest, RawFrame::new(opcode::TEXT, "y".repeat(300))]);
    assert_eq!(raw.receive(), Sent::Text("x".repeat(70_000)));
    raw.send_frames(&[RawFrame { masked: false, ..RawFrame::new(opcode::TEXT, "no") }]);
    server.join().unwrap();
    assert_eq!(raw.receive(), Sent::End);
}

#[test]
fn many_clients_are_read_by_one_thread() {
    let (urls, servers): (Vec<_>, Vec<_>) = (0..20)
        .map(|number| {
            server(move |mut socket, _| {
                for _ in 0..=number {
                    socket.send(tungstenite::Message::text(r#"{"type":"x"}"#)).unwrap();
                }
                assert!(socket.read().unwrap().is_close());
                assert!(matches!(socket.read(), Err(Error::ConnectionClosed)), "the answer is on its way");
            })
        })
        .unzip();
    let mut clients: Vec<_> = urls.iter().map(|url| Ask::to(url).from(Ipv4Addr::new(127, 0, 0, 9)).open()).collect();
    read_until(&mut clients, "each has its messages", WITHIN, |clients| {
        clients.iter().enumerate().all(|(number, client)| client.messages().len() == number + 1)
    });
    clients.into_iter().for_each(Client::close);
    servers.into_iter().for_each(|server| server.join().unwrap());
}
