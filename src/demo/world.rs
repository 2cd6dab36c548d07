//! The demo's world: five markets on a random walk, and a hundred assessed traders. Rules only: a seed makes it
//! repeatable, time is an argument. Its events have the topics and fields that the built-in routes read (PROTOCOL 3),
//! and some more, like a real producer's.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::clock::UnixMs;

/// Time of one step.
pub(crate) const STEP_MS: u64 = 100;

/// Markets and their usual prices.
pub(crate) const MARKETS: [(&str, f64); 5] =
    [("BTC-USD", 64_000.0), ("ETH-USD", 3_200.0), ("SOL-USD", 150.0), ("XRP-USD", 0.6), ("EUR-USD", 1.08)];

/// Number of assessments.
pub(crate) const ASSESSMENTS: usize = 100;

/// The topics of assessments' events.
pub(crate) const ASSESSMENT_TOPICS: [&str; 10] = [
    "assessment.created",
    "assessment.started",
    "assessment.completed",
    "assessment.balance-updated",
    "assessment.pnl-updated",
    "trading.order-filled",
    "trading.position-opened",
    "trading.position-closed",
    "rules.violation-detected",
    "rules.drawdown-checked",
];

/// The share of steps in which a market moves: four times a second.
const TICK_CHANCE: f64 = 0.4;

/// The share of steps in which an assessment does something: about every two seconds.
const ACT_CHANCE: f64 = 0.05;

/// How far a price moves in a tick, relative.
const VOLATILITY: f64 = 0.0004;

/// The part of the way back to its usual price that a price moves in a tick.
const REVERSION: f64 = 0.002;

const START_BALANCE: f64 = 100_000.0;

/// The share of the start balance that may be lost.
const DRAWDOWN_THRESHOLD: f64 = 0.05;

/// Number of positions after which an assessment ends.
const POSITIONS: u32 = 8;

/// A record for Kafka.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DemoRecord {
    /// Its topic.
    pub(crate) topic: String,
    /// Its key: the assessment, or the market.
    pub(crate) key: String,
    /// Its payload.
    pub(crate) payload: Value,
}

/// Markets and assessments.
#[derive(Debug)]
pub(crate) struct DemoWorld {
    rng: Rng,
    prices: [f64; MARKETS.len()],
    traders: Vec<Trader>,
    /// Events so far, for their ids.
    count: u64,
}

/// An assessed trader.
#[derive(Debug)]
struct Trader {
    id: String,
    stage: Stage,
    balance: f64,
    positions: u32,
}

/// Stage of an assessment.
///
/// ```text
/// New -> Created -> Flat <-> Holding
///  ^                 |
///  +-----------------+ after enough positions
/// ```
#[derive(Debug, Clone)]
enum Stage {
    New,
    Created,
    Flat,
    Holding { position: TradePosition, turns: u32 },
}

#[derive(Debug, Clone)]
struct TradePosition {
    id: String,
    market: usize,
    long: bool,
    quantity: f64,
    entry: f64,
}

impl TradePosition {
    fn pnl(&self, price: f64) -> f64 {
        let gain = (price - self.entry) * self.quantity;
        if self.long { gain } else { -gain }
    }

    fn side(&self) -> &'static str {
        if self.long { "long" } else { "short" }
    }
}

/// The id of an assessment, counted from 1.
#[must_use]
pub(crate) fn assessment_id(number: usize) -> String {
    format!("assessment-{number:03}")
}

/// The topic of a market's ticks.
#[must_use]
pub(crate) fn market_topic(market: &str) -> String {
    format!("market-data.{market}-ticks")
}

impl DemoWorld {
    /// A world at its start.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        let trader =
            |number| Trader { id: assessment_id(number), stage: Stage::New, balance: START_BALANCE, positions: 0 };
        Self {
            rng: Rng::with_seed(seed),
            prices: MARKETS.map(|(_, price)| price),
            traders: (1..=ASSESSMENTS).map(trader).collect(),
            count: 0,
        }
    }

    /// Makes one step; returns the events at `now`.
    pub(crate) fn step(&mut self, now: UnixMs) -> Vec<DemoRecord> {
        let mut events = Vec::new();
        for market in 0..MARKETS.len() {
            if self.rng.f64() < TICK_CHANCE {
                events.push(self.tick(market, now));
            }
        }
        for trader in 0..self.traders.len() {
            if self.rng.f64() < ACT_CHANCE {
                self.act(trader, now, &mut events);
            }
        }
        events
    }

    fn tick(&mut self, market: usize, now: UnixMs) -> DemoRecord {
        let (name, usual) = MARKETS[market];
        let price = self.prices[market];
        let noise = self.rng.f64() + self.rng.f64() + self.rng.f64() - 1.5;
        self.prices[market] = price * (1.0 + noise * VOLATILITY) + (usual - price) * REVERSION * self.rng.f64();
        let payload = json!({
            "market": name,
            "price": price_form(self.prices[market]),
            "volume": rounded(self.rng.f64() * 10.0),
            "timestamp": now.to_string(),
        });
        DemoRecord { topic: market_topic(name), key: name.to_owned(), payload }
    }

    fn act(&mut self, trader: usize, now: UnixMs, events: &mut Vec<DemoRecord>) {
        let id = self.traders[trader].id.clone();
        let (stage, happened) = match self.traders[trader].stage.clone() {
            Stage::New => (Stage::Created, self.create(trader)),
            Stage::Created => (Stage::Flat, vec![("assessment.started", json!({"status": "active"}))]),
            Stage::Flat if self.traders[trader].positions == POSITIONS => (Stage::New, self.complete(trader)),
            Stage::Flat => self.open(trader),
            Stage::Holding { position, turns: 0 } => (Stage::Flat, self.close(trader, &position)),
            Stage::Holding { position, turns } => {
                let happened = self.watch(trader, &position);
                (Stage::Holding { position, turns: turns - 1 }, happened)
            }
        };
        self.traders[trader].stage = stage;
        for (topic, mut payload) in happened {
            self.count += 1;
            payload["eventId"] = json!(format!("event-{}", self.count));
            payload["assessmentId"] = json!(id);
            payload["timestamp"] = json!(now.to_string());
            events.push(DemoRecord { topic: topic.to_owned(), key: id.clone(), payload });
        }
    }

    fn create(&mut self, trader: usize) -> StepEvents {
        let trader = &mut self.traders[trader];
        (trader.balance, trader.positions) = (START_BALANCE, 0);
        vec![("assessment.created", json!({"status": "created", "initialBalance": START_BALANCE}))]
    }

    fn complete(&self, trader: usize) -> StepEvents {
        let status = if self.traders[trader].balance > START_BALANCE { "passed" } else { "failed" };
        vec![("assessment.completed", json!({"status": status}))]
    }

    fn open(&mut self, trader: usize) -> (Stage, StepEvents) {
        let market = self.rng.usize(..MARKETS.len());
        let entry = self.prices[market];
        let position = TradePosition {
            id: format!("position-{}", self.count),
            market,
            long: self.rng.bool(),
            quantity: START_BALANCE * (0.5 + self.rng.f64()) * 4.0 / entry,
            entry,
        };
        let opened = json!({
            "positionId": position.id,
            "market": MARKETS[market].0,
            "side": position.side(),
            "quantity": rounded(position.quantity),
            "entryPrice": price_form(entry),
        });
        let filled = json!({
            "orderId": format!("order-{}", self.count),
            "unrealizedPnl": 0,
            "realizedPnl": rounded(self.traders[trader].balance - START_BALANCE),
            "currentBalance": rounded(self.traders[trader].balance),
        });
        let turns = self.rng.u32(4..12);
        (
            Stage::Holding { position, turns },
            vec![("trading.position-opened", opened), ("trading.order-filled", filled)],
        )
    }

    fn watch(&mut self, trader: usize, position: &TradePosition) -> StepEvents {
        let unrealized = position.pnl(self.prices[position.market]);
        let balance = self.traders[trader].balance;
        let lost = ((START_BALANCE - balance - unrealized) / START_BALANCE).max(0.0);
        match self.rng.u32(..12) {
            0 => vec![(
                "rules.violation-detected",
                json!({
                    "ruleType": "max_position_size",
                    "value": rounded(position.quantity * position.entry),
                    "threshold": START_BALANCE * 5.0,
                }),
            )],
            1..4 => vec![(
                "rules.drawdown-checked",
                json!({
                    "value": (lost * 10_000.0).round() / 10_000.0,
                    "threshold": DRAWDOWN_THRESHOLD,
                    "status": if lost < DRAWDOWN_THRESHOLD { "ok" } else { "breached" },
                }),
            )],
            _ => vec![(
                "assessment.pnl-updated",
                json!({
                    "unrealizedPnl": rounded(unrealized),
                    "realizedPnl": rounded(balance - START_BALANCE),
                }),
            )],
        }
    }

    fn close(&mut self, trader: usize, position: &TradePosition) -> StepEvents {
        let exit = self.prices[position.market];
        let realized = position.pnl(exit);
        let trader = &mut self.traders[trader];
        trader.balance += realized;
        trader.positions += 1;
        let closed = json!({
            "positionId": position.id,
            "market": MARKETS[position.market].0,
            "side": position.side(),
            "quantity": rounded(position.quantity),
            "entryPrice": price_form(position.entry),
            "exitPrice": price_form(exit),
            "realizedPnl": rounded(realized),
        });
        vec![
            ("trading.position-closed", closed),
            ("assessment.balance-updated", json!({"currentBalance": rounded(trader.balance)})),
        ]
    }
}

/// Topics, and the fields of their events beside assessment and time.
type StepEvents = Vec<(&'static str, Value)>;

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// A price as exchanges write it: a text with as many decimals as its size needs.
fn price_form(price: f64) -> String {
    if price < 10.0 { format!("{price:.5}") } else { format!("{price:.2}") }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::ids::TopicIndex;
    use crate::routing::mapping::{assessment_of, check_object, map_open};
    use crate::routing::table::{FieldSource, MessageFields, RouteTable};

    fn steps(seed: u64, count: u64) -> Vec<DemoRecord> {
        let mut world = DemoWorld::new(seed);
        (0..count).flat_map(|step| world.step(UnixMs(1_790_000_000_000 + step * STEP_MS))).collect()
    }

    #[test]
    fn a_seed_makes_the_world_repeatable() {
        assert_eq!(steps(7, 50), steps(7, 50));
        assert_ne!(steps(7, 50), steps(8, 50));
    }

    #[test]
    fn five_markets_tick_several_times_a_second_and_stay_near_their_prices() {
        let events = steps(1, 1000);
        for (market, usual) in MARKETS {
            let ticks: Vec<&DemoRecord> = events.iter().filter(|event| event.topic == market_topic(market)).collect();
            assert!((300..500).contains(&ticks.len()), "{market} ticks {} times in 100 s", ticks.len());
            let prices = ticks.iter().map(|tick| tick.payload["price"].as_str().unwrap().parse::<f64>().unwrap());
            assert!(prices.into_iter().all(|price| (price / usual - 1.0).abs() < 0.1), "{market} stays near {usual}");
        }
    }

    #[test]
    fn every_assessment_has_every_kind_of_event_in_time() {
        let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for event in steps(2, 12_000).into_iter().filter(|event| !event.topic.starts_with("market-data.")) {
            kinds.entry(event.key).or_default().insert(event.topic);
        }
        assert_eq!(kinds.len(), ASSESSMENTS);
        for (assessment, topics) in kinds {
            assert_eq!(topics, ASSESSMENT_TOPICS.map(str::to_owned).into(), "{assessment}");
        }
    }

    #[test]
    fn each_event_has_all_fields_of_its_built_in_route() {
        let table = RouteTable::built_in();
        for event in steps(3, 3000) {
            let topic = table.resolve(TopicIndex(0), &event.topic).expect("the topic is routed");
            let payload = event.payload.to_string();
            match topic.market() {
                Some(market) => assert_eq!((market, check_object(payload.as_bytes())), (event.key.as_str(), Ok(()))),
                None => assert_eq!(assessment_of(payload.as_bytes()).as_deref(), Ok(event.key.as_str())),
            }
            let mut message = Vec::new();
            map_open(&topic, payload.as_bytes(), &mut message).unwrap();
            message.push(b'}');
            let message: Value = serde_json::from_slice(&message).unwrap();
            let MessageFields::Listed(fields) = &topic.route.fields else {
                panic!("built-in routes list their fields")
            };
            for field in fields {
                assert!(message.get(&*field.name).is_some(), "{}: {} is there", event.topic, field.name);
                assert!(!matches!(&field.source, FieldSource::Payload(name) if event.payload.get(&**name).is_none()));
            }
        }
    }
}
