//! What routes take from records beside the payload's fields: keys, headers, nested values, filters, and payloads behind
//! a schema registry's bytes.

use loadtest::client::{Client, WITHIN, read_until};
use loadtest::pods::World;
use loadtest::process::{TempDir, eventually};
use serde_json::{Value, json};

const ROUTES: &str = r#"
[[route]]
topic = "orders"
scope = "assessment"
assessment = "header:tenant"
type = "order"
payload = "json-schema"
when = { field = "/order/status", equals = "open" }
fields = [
    "n",
    { name = "k", record = "key" },
    { name = "trace", record = "header:trace" },
    { name = "none", record = "header:none" },
    { name = "partition", record = "partition" },
    { name = "offset", record = "offset" },
    { name = "at", record = "timestamp" },
]

[[route]]
topic = "nested"
scope = "assessment"
assessment = "/order/assessmentId"
partitioner = "none"
type = "nested"
fields = ["n"]
"#;

/// An order, behind the schema's id if it has one.
fn order(number: u64, status: &str, has_schema: bool) -> Vec<u8> {
    let schema: &[u8] = if has_schema { &[0, 0, 0, 0, 7] } else { &[] };
    let payload = json!({ "n": number, "order": { "status": status, "assessmentId": "a" } });
    [schema, payload.to_string().as_bytes()].concat()
}

fn received(client: &Client) -> Vec<Value> {
    let events = client.messages().iter().map(|message| message.json());
    events.filter(|event| ["order", "nested"].iter().any(|kind| event["type"] == *kind)).collect()
}

#[test]
fn routes_take_keys_headers_and_nested_values_and_leave_out_what_their_filter_does_not_want() {
    let world = World::without_topics();
    world.kafka.create_all(&[("orders", 1), ("nested", 1)]);
    let dir = TempDir::new("routes");
    let file = dir.file("routes.toml", ROUTES);
    let pod = world.pod("pod-0").set("ROUTES_FILE", file.to_str().unwrap()).start();
    let mut clients = [pod.client("a")];
    clients[0].expect_type("connected");
    let producer = world.producer();
    let headers: &[(&str, &[u8])] = &[("tenant", b"a"), ("trace", b"t\"1"), ("binary", b"\xff")];
    for (number, status, has_schema) in [(0, "open", true), (1, "closed", true), (2, "open", false), (3, "none", false)]
    {
        producer.send_with_headers("orders", Some("k"), &order(number, status, has_schema), headers);
    }
    producer.send_with_headers("orders", Some("k"), &order(4, "open", true), &[]);
    producer.send("nested", None, Some(&order(5, "", false)));
    // A payload of Avro or Protobuf, or of JSON whose route doesn't say so.
    producer.send("nested", None, Some(&order(6, "", true)));
    producer.send("nested", None, Some(&order(7, "", false)));
    producer.flush();

    read_until(&mut clients, "the events", WITHIN, |clients| received(&clients[0]).len() >= 4);
    let mut events = received(&clients[0]);
    let numbers = |kind: &str| {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["n"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((numbers("order"), numbers("nested")), (vec![0, 2], vec![5, 7]));
    let first = events.iter_mut().find(|event| event["n"] == 0).unwrap().as_object_mut().unwrap();
    assert!(first.remove("at").unwrap().as_u64().unwrap() > 1_700_000_000_000);
    first.remove("cursor");
    let expected = json!({ "type": "order", "n": 0, "k": "k", "trace": "t\"1", "partition": 0, "offset": 0 });
    assert_eq!(Value::Object(first.clone()), expected);

    let skipped = |reason: &str| pod.metrics().of("websocket_kafka_messages_skipped_total", &[("reason", reason)]);
    eventually("the records are counted", WITHIN, || (skipped("filtered_out") == 2.0).then_some(()));
    let of_fault = |fault: &str| pod.metrics().of("shardgate_ingest_malformed_records_total", &[("fault", fault)]);
    assert_eq!((of_fault("no_assessment"), of_fault("schema_registry")), (1.0, 1.0));
    assert!(pod.log().contains("payload begins with the five bytes of a schema registry"), "{}", pod.log());

    // The cursor covers what the filter left out.
    let cursor = clients[0].last_cursor();
    producer.send_with_headers("orders", Some("k"), &order(8, "closed", true), headers);
    producer.send_with_headers("orders", Some("k"), &order(9, "open", true), headers);
    producer.flush();
    let mut resumed = [pod.ask().assessment("a").parameter(&format!("cursor={cursor}")).open()];
    read_until(&mut resumed, "the event after the cursor", WITHIN, |clients| !received(&clients[0]).is_empty());
    assert_eq!(received(&resumed[0])[0]["n"], 9);
    assert_eq!(resumed[0].of_type("reset").count(), 0);
}
