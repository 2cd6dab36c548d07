//! Tokens of open connections: replaced by the client, running out, and revoked.

use std::sync::Arc;

use super::*;
use crate::exchange::Busy;
use crate::protocol::auth::{Allowed, Grant, Revocation, RevocationSet, Rule, Subject, Unauthorized};
use crate::protocol::head::BearerToken;
use crate::shard::client_identity::ClientIdentity;

fn grant(world: &World, user: &str, seconds: u64) -> Grant {
    let expires = Some(world.now.unix.plus(Duration::from_secs(seconds)));
    Grant { user: user.into(), expires, allowed: Allowed::Any, issued: None, token_id: None }
}

fn kinds(socket: &Scripted) -> Vec<String> {
    let field = |text: &String| {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        json["error"].as_str().or(json["type"].as_str()).unwrap().to_owned()
    };
    socket.texts().iter().map(field).collect()
}

/// The client sends a token, and this is what the verifier says of it.
fn refresh(world: &mut World, key: ConnectionKey, verdict: Result<Result<Grant, Unauthorized>, Busy>) {
    world.state.inbound(key, Inbound::Refresh(BearerToken("new".into())), world.now);
    assert_eq!(std::mem::take(&mut world.state.refreshes).len(), 1);
    world.state.refresh(key, verdict, world.now);
    world.state.flush(key, world.now);
}

#[test]
fn a_client_is_told_before_its_token_expires_and_goes_on_by_a_new_one() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let socket = Scripted::open();
    // The leeway of 30 s is part of it.
    let key = world.connect_to(&socket, Some("a"), Some(world.now.unix.plus(Duration::from_secs(120))));
    assert_eq!(kinds(&socket), ["connected"]);
    let mut wait = |world: &mut World, seconds| {
        for _ in 0..seconds {
            world.pass(Duration::from_secs(1));
            world.state.inbound(key, Inbound::Pong, world.now);
            world.sweep(&mut sweeper);
        }
    };
    let told = |socket: &Scripted| kinds(socket).iter().filter(|kind| *kind == "token_expiring").count();
    wait(&mut world, 28);
    assert_eq!(told(&socket), 0);
    wait(&mut world, 20);
    assert_eq!(told(&socket), 1, "60 s before it expires, once");
    let new = grant(&world, "u", 200);
    refresh(&mut world, key, Ok(Ok(new)));
    let texts = socket.texts();
    let expires = world.now.unix.plus(Duration::from_secs(170));
    assert_eq!(texts, [format!(r#"{{"type":"refreshed","tokenExpiresAt":"{expires}"}}"#)]);
    wait(&mut world, 100);
    assert_eq!((told(&socket), world.state.ended(key)), (0, None), "the old token is over");
    wait(&mut world, 99);
    assert_eq!((told(&socket), world.state.ended(key)), (1, None));
    wait(&mut world, 2);
    assert_eq!(world.state.ended(key), Some(CloseReason::TokenExpired));
}

#[test]
fn a_token_that_has_less_than_a_minute_is_told_at_once() {
    let mut world = World::new();
    let socket = Scripted::open();
    world.connect_to(&socket, None, Some(world.now.unix.plus(Duration::from_secs(40))));
    assert_eq!(kinds(&socket), ["connected", "token_expiring"]);
}

#[test]
fn a_new_token_that_is_bad_changes_nothing() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    kinds(&socket);
    let sent = |world: &mut World, verdict| {
        world.pass(Duration::from_secs(1));
        refresh(world, key, verdict);
        socket.texts()
    };
    let other = Grant { allowed: Allowed::Only(["b".into()].into()), ..grant(&world, "user-1", 100) };
    let user = world.state.connections[key].client.user().to_owned();
    for (verdict, error) in [
        (Ok(Err(Unauthorized::Expired)), r#"{"error":"Unauthorized","message":"the token has expired"}"#),
        (
            Ok(Ok(grant(&world, "another", 100))),
            r#"{"error":"Unauthorized","message":"the new token is another user's"}"#,
        ),
        (
            Ok(Ok(Grant { user: user.as_str().into(), ..other })),
            r#"{"error":"Forbidden","message":"the new token does not allow this assessment"}"#,
        ),
        (
            Err(Busy),
            r#"{"error":"BadMessage","message":"one refresh a second, and none while the gateway has many: try again later"}"#,
        ),
    ] {
        assert_eq!(sent(&mut world, verdict), [error]);
    }
    assert!(world.state.connections[key].token_expires_at.is_none() && world.state.ended(key).is_none());
}

#[test]
fn a_client_may_try_one_token_a_second() {
    let mut world = World::new();
    let (key, socket) = world.connect(None);
    kinds(&socket);
    for _ in 0..5 {
        world.state.inbound(key, Inbound::Refresh(BearerToken("new".into())), world.now);
        world.state.flush(key, world.now);
    }
    assert_eq!((world.state.refreshes.len(), kinds(&socket)), (1, vec!["BadMessage".to_owned(); 4]));
    world.pass(Duration::from_secs(1));
    world.state.inbound(key, Inbound::Refresh(BearerToken("new".into())), world.now);
    assert_eq!(world.state.refreshes.len(), 2);
}

#[test]
fn connections_of_revoked_tokens_are_closed_and_others_stay() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let clients: Vec<_> = (0..300).map(|_| world.connect(Some("a"))).collect();
    for (index, (key, _)) in clients.iter().enumerate() {
        let user = if index % 3 == 0 { "gone" } else { "stays" };
        world.state.connections[*key].client = ClientIdentity::of_user(user, None);
    }
    let mut revocations = RevocationSet::default();
    let rule = Rule { issued_before: None, until: world.now.unix.plus(Duration::from_secs(60)) };
    revocations.add(&Revocation { subject: Subject::User("gone".into()), rule });
    sweeper.judge_by(&Arc::new(revocations), world.state.connections.len());
    world.sweep(&mut sweeper);
    for (index, (key, _)) in clients.iter().enumerate() {
        let expected = (index % 3 == 0).then_some(CloseReason::Revoked);
        assert_eq!(world.state.ended(*key), expected);
    }
    world.pass(Duration::from_millis(10));
    world.sweep(&mut sweeper);
    assert!(clients.iter().skip(1).step_by(3).all(|(key, _)| world.state.is_live(*key)));
}
