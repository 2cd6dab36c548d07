//! The format of the routes file, and its faults.

use super::*;

fn faults(text: &str) -> Vec<String> {
    parse_routes(text).expect_err("the file has a fault").0
}

/// The faults of a route that has good keys but for those given; its `[[route]]` is line 1.
fn faults_of_route(keys: &str) -> Vec<String> {
    let good = [
        ("topic", r#"topic = "a.{x}""#),
        ("scope", r#"scope = "assessment""#),
        ("type", r#"type = "t""#),
        ("fields", r#"fields = ["f"]"#),
    ];
    let said = |key: &str| keys.lines().any(|line| line.trim_start_matches('!').starts_with(key));
    let given = keys.lines().filter(|line| !line.starts_with('!')).map(str::to_owned);
    let rest = good.iter().filter(|(key, _)| !said(key)).map(|(_, line)| (*line).to_owned());
    faults(&["[[route]]".to_owned()].into_iter().chain(given).chain(rest).collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_contracts_example_is_read_as_it_says() {
    let routes = parse_routes(
        r#"
            [[route]]
            topic = "market-data.{market}-ticks"
            scope = "market"
            fields = [{ name = "market", topic = "market" }, "price"]

            [[route]]
            topic = "rules.drawdown-checked"
            scope = "assessment"
            assessment = "key"
            partitioner = "crc32"
            type = "rule_status"
            fields = ["assessmentId", { name = "rule", const = "draw\"down" }, { name = "n", from = "number" }]

            [[route]]
            topic = "other"
            scope = "assessment"
            type = "other"
            fields = "*"
            "#,
    )
    .unwrap();
    assert_eq!(routes[0].scope, Scope::Market { part: "market".into() });
    assert_eq!(&*routes[0].message_type, "market_price");
    let key = Scope::Assessment { from: AssessmentFrom::Key, partitioner: Partitioner::Crc32 };
    assert_eq!(routes[1].scope, key);
    let MessageFields::Listed(fields) = &routes[1].fields else { panic!("the fields are listed") };
    let told: Vec<String> = fields.iter().map(|field| format!("{} {:?}", field.name, field.source)).collect();
    assert_eq!(
        told,
        [r#"assessmentId Payload("assessmentId")"#, r#"rule Const("\"draw\\\"down\"")"#, r#"n Payload("number")"#,]
    );
    let defaults = Scope::Assessment { from: AssessmentFrom::Payload, partitioner: Partitioner::Murmur2 };
    assert_eq!(routes[2].scope, defaults);
    assert!(matches!(routes[2].fields, MessageFields::Whole));
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_their_lines() {
    let text = r#"
[[route]]
topic = "market-data.{market-ticks"
scope = "market"
fields = ["price"]

[[route]]
scope = "everyone"
type = 5
fields = ["cursor", { name = "a", from = "b", const = 1 }]
partitoner = "murmur2"
"#;
    assert_eq!(
        faults(text),
        [
            "line 3: topic = \"market-data.{market-ticks\": the part {market-ticks is not closed; \
                 a part is written {name}",
            "line 7: topic is missing; it takes a topic's name, in which {name} stands for any characters",
            "line 8: scope = \"everyone\": it takes \"market\" or \"assessment\"",
            "line 9: type is an integer; it takes a string",
            "line 10: a field is named \"cursor\"; it takes a name other than \"type\" and \"cursor\", \
                 the gateway's own",
            "line 10: a field has both from and const; it takes one of from, const, topic and record",
            "line 11: unknown key \"partitoner\"; a route takes topic, scope, type, fields, assessment, \
             partitioner, payload, when",
        ]
    );
}

#[test]
fn a_file_that_is_no_toml_tells_each_place() {
    let told = faults("[[route]]\ntopic = x\n\nscope = \n");
    assert!(told.len() >= 2 && told[0].starts_with("line 2: ") && told[1].starts_with("line 4: "), "{told:?}");
    assert_eq!(faults("route = 1\nroute = 2"), ["line 2: duplicate key"]);
}

#[test]
fn a_file_without_routes_is_a_fault() {
    let none = ["line 1: there are no routes; it takes at least one [[route]]"];
    assert_eq!(faults(""), none);
    assert_eq!(faults("route = []"), none);
    assert_eq!(faults("[route]\ntopic = \"a\""), ["line 1: route is a table; it takes [[route]]"]);
    assert_eq!(faults("route = [1]"), ["line 1: a route is an integer; it takes a table, written [[route]]"]);
}

#[test]
fn a_route_that_an_earlier_one_leaves_no_topic_is_a_fault() {
    let route =
        |topic: &str| format!("[[route]]\ntopic = \"{topic}\"\nscope = \"assessment\"\ntype = \"t\"\nfields = \"*\"\n");
    let told = faults(&(route("a.{x}") + &route("b") + &route("a.{y}")));
    assert_eq!(
        told,
        ["line 11: the route of \"a.{y}\" never has a topic: an earlier one, \"a.{x}\", takes them all; \
              put this one first, or drop it"]
    );
    assert!(parse_routes(&(route("a.b") + &route("a.{y}"))).is_ok());
}

#[test]
fn each_key_of_a_route_has_its_faults() {
    let table = [
        ("!type", "line 1: type is missing; it takes the message's type"),
        ("!scope", "line 1: scope is missing; it takes \"market\" or \"assessment\""),
        ("!fields", "line 1: the route has no fields; it takes a list of fields, or \"*\"; a field is"),
        ("topic = \"\"", "line 2: topic = \"\": it is empty"),
        ("scope = true", "line 2: scope is a boolean; it takes a string"),
        ("type = \"ping\"", "line 2: type = \"ping\": it takes a name other than the gateway's own: connected, "),
        ("type = \"\"", "line 2: type = \"\": it takes a name"),
        (
            "assessment = \"header\"",
            "line 2: assessment = \"header\": it takes \"payload\", \"key\", \"header:<name>\"",
        ),
        ("partitioner = \"fnv\"", "line 2: partitioner = \"fnv\": it takes \"murmur2\" or \"crc32\" or \"none\""),
        ("scope = \"market\"", "line 3: scope = \"market\" takes a topic with a part {market}"),
        ("fields = \"all\"", "line 2: fields is a string; it takes a list of fields, or \"*\""),
        ("fields = []", "line 2: fields lists 0; it takes 1 to 64, or \"*\""),
    ];
    for (keys, expected) in table {
        let told = faults_of_route(keys);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{keys}: {told:?}");
    }
    let market = "scope = \"market\"\ntopic = \"{market}\"\nassessment = \"key\"\npartitioner = \"none\"";
    assert_eq!(
        faults_of_route(market),
        [
            "line 4: assessment is for scope = \"assessment\"; scope = \"market\" takes none",
            "line 5: partitioner is for scope = \"assessment\"; scope = \"market\" takes none",
        ]
    );
}

#[test]
fn each_field_has_its_faults() {
    let table = [
        ("1", "a field is an integer; a field is a name, { name, from }"),
        ("\"type\"", "a field is named \"type\"; it takes a name other"),
        ("{ name = \"cursor\", const = 1 }", "a field is named \"cursor\"; it takes a name other"),
        ("\"\"", "a field is named \"\""),
        ("\"f\"", "the field \"f\" is there twice"),
        ("{ from = \"f\" }", "name is missing; it takes the field's name in the message"),
        ("{ name = \"g\" }", "a field has no value; it takes one of from, const, topic and record"),
        ("{ name = \"g\", from = 1 }", "from is an integer; it takes a string"),
        (
            "{ name = \"g\", form = \"f\", const = 1 }",
            "unknown key \"form\"; a field takes name, from, const, topic, record",
        ),
        ("{ name = \"g\", topic = \"y\" }", "topic = \"y\": it takes a part of the route's topic, which has \"x\""),
        ("{ name = \"g\", const = [1] }", "const is an array; it takes a string, a number, true or false"),
        ("{ name = \"g\", const = nan }", "const is a float; it takes a string, a number"),
        ("{ name = \"g\", const = 9223372036854775808 }", "const is an integer; it takes a string, a number"),
    ];
    for (field, expected) in table {
        let told = faults_of_route(&format!("fields = [\"f\", {field}]"));
        assert!(told.len() == 1 && told[0].starts_with(&format!("line 2: {expected}")), "{field}: {told:?}");
    }
}

#[test]
fn what_a_route_takes_from_a_record_is_parsed_or_each_fault_is_reported() {
    let keys = "scope = \"assessment\"\ntype = \"t\"\ntopic = \"a\"\nassessment = \"/o/id\"\npayload = \"json-schema\"\n\
                when = { field = \"s\", equals = 1.50 }\nfields = [\"s\", { name = \"k\", record = \"key\" }, \
                { name = \"h\", record = \"header:k\" }]";
    let route = &parse_routes(&format!("[[route]]\n{keys}")).unwrap()[0];
    let Scope::Assessment { from: AssessmentFrom::Path(path), .. } = &route.scope else { panic!("{:?}", route.scope) };
    assert_eq!((path.to_string().as_str(), route.payload), ("/o/id", PayloadForm::JsonSchema));
    assert_eq!(route.when.as_ref().map(|when| (when.path.to_string(), &*when.equals)), Some(("/s".into(), "1.50")));
    assert_eq!(route.carried, [RecordValue::Key, RecordValue::Header("k".into())]);

    let table = [
        (
            "assessment = \"header:\"",
            "assessment = \"header:\": it takes \"payload\", \"key\", \"header:<name>\", or a JSON",
        ),
        ("assessment = \"/a~2\"", "assessment = \"/a~2\": it takes"),
        ("payload = \"avro\"", "payload = \"avro\": it takes \"json\" or \"json-schema\""),
        ("when = \"s\"", "when is a string; it takes { field, equals }"),
        ("when = { equals = 1 }", "field is missing; it takes a field's name, or a JSON pointer"),
        ("when = { field = \"s\" }", "equals is missing; it takes a string, a number"),
        ("when = { field = \"/~\", equals = 1 }", "field = \"/~\": it takes a field's name"),
        ("when = { field = \"s\", equals = [1] }", "equals is an array; it takes a string, a number"),
        ("when = { field = \"s\", equals = 1, not = 2 }", "unknown key \"not\"; when takes field, equals"),
        ("fields = [{ name = \"r\", record = \"topic\" }]", "record = \"topic\": it takes \"key\", \"header:<name>\""),
    ];
    for (keys, expected) in table {
        let told = faults_of_route(keys);
        assert!(told.len() == 1 && told[0].starts_with(&format!("line 2: {expected}")), "{keys}: {told:?}");
    }
}

#[test]
fn a_constant_becomes_the_json_that_it_reads_as() {
    let constants = ["\"a\\u00e9\\n\"", "0", "-17", "0x1f", "1_000", "+2.50", "1e3", "true"];
    let json = ["\"aé\\n\"", "0", "-17", "31", "1000", "2.50", "1e3", "true"];
    let fields: Vec<String> =
        (0..).zip(constants).map(|(i, c)| format!("{{ name = \"c{i}\", const = {c} }}")).collect();
    let file =
        format!("[[route]]\ntopic = \"a\"\nscope = \"assessment\"\ntype = \"t\"\nfields = [{}]", fields.join(", "));
    let MessageFields::Listed(fields) = &parse_routes(&file).unwrap()[0].fields else {
        panic!("the fields are listed")
    };
    for (field, expected) in fields.iter().zip(json) {
        assert!(matches!(&field.source, FieldSource::Const(json) if **json == *expected), "{field:?}: {expected}");
    }
}
