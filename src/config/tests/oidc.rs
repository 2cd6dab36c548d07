//! Tokens for brokers, by librdkafka's properties.

use super::*;

#[test]
fn the_properties_of_oidc_are_checked_together_and_kept_from_librdkafka() {
    let file = "security.protocol=SASL_SSL\nsasl.mechanisms=OAUTHBEARER\nsasl.oauthbearer.method=oidc\n\
                sasl.oauthbearer.client.id=gate\nsasl.oauthbearer.client.secret=hunter2\nsasl.oauthbearer.scope=a b\n\
                sasl.oauthbearer.token.endpoint.url=https://idp.example/token\n";
    let config = World::new().env("KAFKA_PROPERTIES_FILE", "p").file("p", file).config();
    let oidc = config.kafka.oidc.as_ref().unwrap();
    assert_eq!((&*oidc.client_id, &*oidc.client_secret, oidc.scope.as_deref()), ("gate", "hunter2", Some("a b")));
    assert_eq!(client_properties(&config.kafka).get("sasl.oauthbearer.client.id"), None);
    assert!(!format!("{config:?}").contains("hunter2"));

    let wrong = "security.protocol=SASL_SSL\nsasl.mechanisms=OAUTHBEARER\nsasl.oauthbearer.method=oidc\n\
                 sasl.oauthbearer.client.secret=hunter2\nhttps.ca.location=none.pem\n\
                 sasl.oauthbearer.token.endpoint.url=http://idp.example/token";
    let faults = World::new().env("KAFKA_PROPERTIES_FILE", "p").file("p", wrong).faults();
    for part in
        ["takes a URL that begins with https://", "also takes sasl.oauthbearer.client.id", "none.pem can't be read"]
    {
        assert_eq!(faults.iter().filter(|fault| fault.contains(part)).count(), 1, "{part}: {faults:?}");
    }
    assert!(!faults.iter().any(|fault| fault.contains("hunter2")), "{faults:?}");
}
