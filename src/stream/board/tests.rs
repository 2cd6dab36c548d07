use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::routing::table::Table;
use crate::stream::testing::{BTC, ETH, number, texts, tick, topics};

const WINDOW: Duration = Duration::from_secs(300);

fn board(now: Instant) -> Board {
    let mut board = Board::new(WINDOW);
    board.apply(&Batch { topics: topics(), ..Batch::default() }, now);
    board
}

/// What a connection at `seen` is sent, and where it is then.
fn read(board: &Board, seen: &mut BoardVersion) -> Vec<u64> {
    let unseen = board.unseen(*seen);
    let progress = unseen.progress(unseen.bytes.len());
    let prices: Vec<_> = texts(unseen.bytes).iter().map(|text| number(text)).collect();
    assert_eq!((progress.frames, progress.cut_until), (prices.len() as u64, None));
    *seen = progress.version.unwrap_or(*seen);
    prices
}

#[test]
fn a_new_client_gets_the_whole_board_and_then_what_changed() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    board.publish(now);
    let mut seen = BoardVersion::default();
    assert_eq!(read(&board, &mut seen), [100, 200]);
    assert!(board.unseen(seen).is_empty());
    board.apply(&tick(BTC, 0, 2, 0, 101), now);
    assert!(board.has_news());
    assert!(board.unseen(seen).is_empty(), "until the next flush the image stays as it is");
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [101]);
}

#[test]
fn who_lags_gets_the_latest_value_alone() {
    let now = Instant::now();
    let mut board = board(now);
    let mut seen = BoardVersion::default();
    for offset in 0..100 {
        board.apply(&tick(BTC, 0, offset, 0, offset.unsigned_abs()), now);
        board.publish(now);
    }
    assert_eq!(read(&board, &mut seen), [99]);
}

#[test]
fn on_one_partition_the_offset_decides_and_between_partitions_the_timestamp() {
    let now = Instant::now();
    let mut board = board(now);
    let mut seen = BoardVersion::default();
    board.apply(&tick(BTC, 0, 5, 1000, 5), now);
    board.apply(&tick(BTC, 0, 4, 2000, 4), now);
    board.apply(&tick(BTC, 1, 1, 999, 999), now);
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [5]);
    board.apply(&tick(BTC, 1, 2, 1001, 1001), now);
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [1001]);
}

#[test]
fn a_market_whose_topic_was_made_anew_goes_on_from_its_first_offset() {
    const ANEW: TopicIndex = TopicIndex(3);
    let now = Instant::now();
    let mut board = board(now);
    let mut seen = BoardVersion::default();
    board.apply(&tick(BTC, 0, 5_000, 1_000, 1), now);
    let table = Table::parse(Table::BUILT_IN).unwrap();
    let topic = Arc::new(table.resolve(ANEW, "market-data.btc-ticks").unwrap());
    board.apply(&Batch { topics: vec![topic], ..Batch::default() }, now);
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [1], "until there is a newer one");

    board.apply(&tick(ANEW, 0, 0, 999, 2), now);
    assert!(!board.has_news(), "one that is older by its time, as when the old topic's ticks are written anew");
    for (offset, timestamp_ms, price) in [(1, 1_000, 3), (2, 998, 4), (3, 1_001, 5)] {
        board.apply(&tick(ANEW, 0, offset, timestamp_ms, price), now);
        board.publish(now);
        assert_eq!(read(&board, &mut seen), [price], "from the first one that is not older, offsets decide again");
    }
}

#[test]
fn a_tick_from_the_future_keeps_its_market_for_the_window_alone() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 5, i64::MAX, 1), now);
    board.apply(&tick(BTC, 1, 0, 1_000, 2), now + WINDOW);
    board.publish(now + WINDOW);
    assert_eq!(read(&board, &mut BoardVersion::default()), [1]);
    let later = now + WINDOW + Duration::from_millis(1);
    board.apply(&tick(BTC, 1, 1, 1_001, 3), later);
    assert!(board.has_news());
    board.publish(later);
    assert_eq!(read(&board, &mut BoardVersion::default()), [3]);
}

#[test]
fn a_cut_write_says_which_frame_is_half_there() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    board.publish(now);
    let unseen = board.unseen(BoardVersion::default());
    let half = unseen.bytes.len() / 2;
    let progress = unseen.progress(half + 3);
    assert_eq!((progress.frames, progress.cut_until), (1, Some(unseen.bytes.len())));
    assert!(board.unseen(progress.version.unwrap()).is_empty(), "its rest is the connection's own business");
    let progress = unseen.progress(3);
    assert_eq!((progress.frames, progress.cut_until), (0, Some(half)));
    assert_eq!(unseen.progress(0), Progress { version: None, frames: 0, cut_until: None });
}

#[test]
fn a_market_that_is_quiet_for_the_window_leaves_the_board() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now + WINDOW);
    board.publish(now + WINDOW + Duration::from_secs(1));
    assert_eq!(read(&board, &mut BoardVersion::default()), [200]);
    board.apply(&tick(BTC, 0, 2, 0, 101), now + WINDOW);
    board.publish(now + WINDOW + Duration::from_secs(1));
    assert_eq!(read(&board, &mut BoardVersion::default()), [200, 101]);
}

proptest! {
    /// Against a model: a map from market to its latest price, and of what each client has seen.
    #[test]
    fn a_client_always_ends_at_the_latest_prices(
        steps in prop::collection::vec((any::<bool>(), 1u64..1000, any::<bool>(), 0usize..3), 1..100),
    ) {
        let now = Instant::now();
        let mut board = board(now);
        let mut latest = BTreeMap::new();
        let mut published = BTreeMap::new();
        let mut clients = vec![(BoardVersion::default(), BTreeMap::new()); 3];
        for (offset, (is_btc, price, publish, reads)) in (0i64..).zip(steps) {
            let topic = if is_btc { BTC } else { ETH };
            board.apply(&tick(topic, 0, offset, 0, price), now);
            latest.insert(if is_btc { "btc" } else { "eth" }, price);
            if publish {
                board.publish(now);
                published = latest.clone();
            }
            let (seen, prices) = &mut clients[reads];
            let unseen = board.unseen(*seen);
            for text in texts(unseen.bytes) {
                let market = if text.contains("btc") { "btc" } else { "eth" };
                let before = prices.insert(market, number(&text));
                prop_assert!(before.is_none() || !unseen.is_empty());
            }
            *seen = unseen.progress(unseen.bytes.len()).version.unwrap_or(*seen);
            prop_assert_eq!(&*prices, &published);
        }
    }
}
