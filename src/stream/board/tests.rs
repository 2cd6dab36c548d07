use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::limits::BOARD_BYTES_MAX;
use crate::routing::table::RouteTable;
use crate::stream::testing::{BTC, ETH, number, texts, tick, topics};

const WINDOW: Duration = Duration::from_secs(300);

fn board(now: Instant) -> Board {
    let mut board = Board::new(WINDOW, BOARD_BYTES_MAX);
    board.apply(&Batch { topics: topics(), ..Batch::default() }, now);
    board
}

/// What a connection at `seen` is sent, and where it is then.
fn read(board: &Board, seen: &mut BoardVersion) -> Vec<u64> {
    let unseen = board.changes_since(*seen);
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
    assert!(board.changes_since(seen).is_empty());
    board.apply(&tick(BTC, 0, 2, 0, 101), now);
    assert!(board.has_unpublished());
    assert!(board.changes_since(seen).is_empty(), "until the next flush the image stays as it is");
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [101]);
}

#[test]
fn the_markets_of_a_dropped_topic_leave_the_board() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    board.publish(now);
    board.apply(&Batch { dropped: vec![BTC], ..Batch::default() }, now);
    assert!(board.is_stale(now), "no newcomer is sent the image");
    board.publish(now);
    assert_eq!(read(&board, &mut BoardVersion::default()), [200]);
}

#[test]
fn a_lagging_client_gets_the_latest_value_only() {
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
    let table = RouteTable::parse(RouteTable::BUILT_IN).unwrap();
    let topic = Arc::new(table.resolve(ANEW, "market-data.btc-ticks").unwrap());
    board.apply(&Batch { topics: vec![topic], ..Batch::default() }, now);
    board.publish(now);
    assert_eq!(read(&board, &mut seen), [1], "until there is a newer one");

    board.apply(&tick(ANEW, 0, 0, 999, 2), now);
    assert!(!board.has_unpublished(), "one that is older by its time, as when the old topic's ticks are written anew");
    for (offset, timestamp_ms, price) in [(1, 1_000, 3), (2, 998, 4), (3, 1_001, 5)] {
        board.apply(&tick(ANEW, 0, offset, timestamp_ms, price), now);
        board.publish(now);
        assert_eq!(read(&board, &mut seen), [price], "from the first one that is not older, offsets decide again");
    }
}

/// A tick without a time of its own.
fn undated(topic: TopicIndex, partition: i32, offset: i64, price: u64) -> Batch {
    tick(topic, partition, offset, TickTime::UNKNOWN.0, price)
}

/// A tick that was so old when it was read.
fn aged(topic: TopicIndex, offset: i64, age: Duration, price: u64) -> Batch {
    let mut batch = tick(topic, 0, offset, 0, price);
    batch.ticks[0].age_ms = u32::try_from(age.as_millis()).unwrap();
    batch
}

/// What a new client is sent.
fn whole(board: &Board) -> Vec<u64> {
    read(board, &mut BoardVersion::default())
}

#[test]
fn a_tick_of_an_unknown_time_never_replaces_one_of_a_known_time_on_another_partition() {
    let now = Instant::now();
    let mut board = board(now);
    let mut show = |batch: Batch| {
        board.apply(&batch, now);
        board.publish(now);
        whole(&board)
    };
    assert_eq!(show(undated(BTC, 0, 0, 1)), [1], "it is all that there is");
    assert_eq!(show(undated(BTC, 1, 0, 2)), [2], "of two such the last one to come");
    assert_eq!(show(tick(BTC, 0, 1, 1_000, 3)), [3]);
    assert_eq!(show(undated(BTC, 1, 1, 4)), [3]);
    assert_eq!(show(undated(BTC, 0, 2, 5)), [5], "on one partition the offset decides, whatever the timestamps");
    assert_eq!(show(tick(BTC, 1, 2, 999, 6)), [5], "which is older than what came before that one");
    assert_eq!(show(tick(BTC, 1, 3, 1_000, 7)), [7]);
}

#[test]
fn a_tick_of_a_known_time_holds_its_market_for_the_window_alone() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 5, 1_000, 1), now);
    board.apply(&undated(BTC, 1, 0, 2), now + WINDOW);
    board.publish(now + WINDOW);
    assert_eq!(whole(&board), [1]);
    let later = now + WINDOW + Duration::from_millis(1);
    board.apply(&undated(BTC, 1, 1, 3), later);
    assert!(board.has_unpublished());
    board.publish(later);
    assert_eq!(whole(&board), [3]);
}

#[test]
fn nothing_older_than_the_window_is_on_the_board_though_no_tick_comes() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now + Duration::from_secs(1));
    board.publish(now + Duration::from_secs(1));
    let lagging = BoardVersion::default();
    board.evict(now + WINDOW);
    assert!(!board.is_stale(now + WINDOW));
    assert_eq!(read(&board, &mut lagging.clone()), [100, 200]);

    let later = now + WINDOW + Duration::from_millis(1);
    assert!(board.is_stale(later), "a new client gets a rebuilt image");
    board.evict(later);
    assert_eq!(read(&board, &mut lagging.clone()), [200], "one that lags is sent nothing old either");
    board.evict(later + Duration::from_secs(1));
    assert_eq!(read(&board, &mut lagging.clone()), [0; 0]);
    assert_eq!(board.image_version(), BoardVersion::default());
    assert!(!board.is_stale(later + 2 * WINDOW) && !board.has_unpublished());

    board.apply(&tick(BTC, 0, 2, 0, 101), later + 2 * WINDOW);
    board.publish(later + 2 * WINDOW);
    assert_eq!(whole(&board), [101]);
}

#[test]
fn the_age_that_a_tick_had_when_it_was_read_counts() {
    let now = Instant::now();
    let mut board = board(now);
    let second = Duration::from_secs(1);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    board.publish(now);
    board.apply(&aged(BTC, 1, WINDOW - second, 100), now);
    board.publish(now + second);
    assert_eq!(whole(&board), [200, 100]);
    board.evict(now + second + Duration::from_millis(1));
    assert_eq!(whole(&board), [200]);
    // A newer tick that is old itself shortens what its market has left.
    board.apply(&aged(ETH, 2, WINDOW - second, 201), now + 2 * second);
    board.evict(now + 3 * second + Duration::from_millis(1));
    assert_eq!(whole(&board), [0; 0]);
}

#[test]
fn a_market_whose_producer_writes_its_name_otherwise_is_another_and_the_old_one_leaves_with_the_window() {
    const UPPER: TopicIndex = TopicIndex(3);
    let now = Instant::now();
    let mut board = board(now);
    let table = RouteTable::parse(RouteTable::BUILT_IN).unwrap();
    let topic = Arc::new(table.resolve(UPPER, "market-data.BTC-ticks").unwrap());
    board.apply(&Batch { topics: vec![topic], ..Batch::default() }, now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    for second in 1..=300 {
        board
            .apply(&tick(UPPER, 0, second, 0, second.unsigned_abs()), now + Duration::from_secs(second.unsigned_abs()));
    }
    board.publish(now + WINDOW);
    assert_eq!(whole(&board), [100, 300]);
    board.evict(now + WINDOW + Duration::from_millis(1));
    assert_eq!(whole(&board), [300]);
}

/// A tick whose payload has about this many bytes.
fn large(topic: TopicIndex, offset: i64, bytes: usize) -> Batch {
    let mut batch = Batch::default();
    let payload = batch.push_bytes(format!(r#"{{"price":{offset},"timestamp":"{}"}}"#, "x".repeat(bytes)).as_bytes());
    let origin = Origin { topic, partition: 0, offset };
    batch.ticks.push(Tick { origin, made: TickTime(0), age_ms: 0, payload });
    batch
}

#[test]
fn ticks_are_bounded_in_bytes_and_one_that_does_not_fit_leaves_no_older_price_in_its_place() {
    let now = Instant::now();
    let mut board = Board::new(WINDOW, 1_000);
    board.apply(&Batch { topics: topics(), ..Batch::default() }, now);
    let mut show = |batch: Batch| {
        board.apply(&batch, now);
        assert!(board.bytes <= 1_000);
        board.publish(now);
        assert!(board.bytes <= 1_000 && board.image.len() == board.bytes);
        let shown = whole(&board);
        assert!(!board.has_unpublished() && !board.is_stale(now + WINDOW));
        (shown, board.take_refused())
    };
    assert_eq!(show(large(BTC, 1, 300)), (vec![1], 0));
    assert_eq!(show(large(ETH, 1, 300)), (vec![1, 1], 0));
    assert_eq!(show(large(ETH, 2, 700)), (vec![1], 1), "its older price would pass for the latest");
    assert_eq!(show(large(ETH, 3, 500)), (vec![1, 3], 0), "there is room again");
    assert_eq!(show(large(BTC, 2, 375)), (vec![3], 1), "whose frame is longer than its payload");
    assert_eq!(show(large(ETH, 4, 10)), (vec![4], 0));
    assert_eq!(show(large(BTC, 3, 800)), (vec![4, 3], 0));
    assert_eq!(show(large(BTC, 4, 2_000)), (vec![4], 1), "more than the board takes at all");
}

#[test]
fn a_market_that_was_large_once_keeps_no_memory_for_it() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&large(BTC, 1, 1 << 20), now);
    board.publish(now);
    board.apply(&large(BTC, 2, 10), now);
    board.publish(now);
    let held = board.image.capacity() + board.scratch.capacity() + board.markets[0].tick.capacity();
    assert!(held < 4 * IMAGE_SPARE_BYTES, "{held} bytes");
}

#[test]
fn a_tick_that_cannot_be_mapped_is_counted_once_and_shown_never() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    let mut bad = tick(BTC, 0, 1, 0, 1);
    bad.arena[0] = b'x';
    board.apply(&bad, now);
    board.publish(now);
    assert_eq!((whole(&board), board.take_unusable()), (vec![200], 1));
    board.publish(now);
    assert_eq!((whole(&board), board.take_unusable(), board.bytes), (vec![200], 0, board.image.len()));
}

#[test]
fn a_cut_write_says_which_frame_is_half_there() {
    let now = Instant::now();
    let mut board = board(now);
    board.apply(&tick(BTC, 0, 1, 0, 100), now);
    board.apply(&tick(ETH, 0, 1, 0, 200), now);
    board.publish(now);
    let unseen = board.changes_since(BoardVersion::default());
    let half = unseen.bytes.len() / 2;
    let progress = unseen.progress(half + 3);
    assert_eq!((progress.frames, progress.cut_until), (1, Some(unseen.bytes.len())));
    assert!(board.changes_since(progress.version.unwrap()).is_empty(), "its rest is the connection's own business");
    let progress = unseen.progress(3);
    assert_eq!((progress.frames, progress.cut_until), (0, Some(half)));
    assert_eq!(unseen.progress(0), BoardProgress { version: None, frames: 0, cut_until: None });
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
            let unseen = board.changes_since(*seen);
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
