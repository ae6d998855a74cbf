//! The prefix cache in memory: the longest prefix is found, restored exactly, and the memory is bounded.

use super::*;
use kernels::reference::Reference;

#[test]
fn edits_go_to_the_snapshot_before_the_difference() {
    let engine = engine(StoreOptions::in_memory());
    let mut session = Session::new(&engine);
    let (document, first, second) = (tokens(1, 300), tokens(2, 20), tokens(3, 30));
    session.snapshot_at(&[300]);
    assert_eq!(parts(read(&mut session, &[&document[..], &first].concat())), (0, None, 320));
    let other = [&document[..], &second].concat();
    assert_eq!(parts(read(&mut session, &other)), (300, Some(PrefixSource::Ram), 30), "another question");
    let longer = [&other[..], &first].concat();
    assert_eq!(parts(read(&mut session, &longer)), (330, Some(PrefixSource::Live), 20), "a turn more");
    assert_eq!(parts(read(&mut session, &other)), (330, Some(PrefixSource::Ram), 0), "undo");
    assert_eq!(parts(read(&mut session, &other)), (330, Some(PrefixSource::Live), 0), "the same again");
    assert_eq!(parts(read(&mut session, &longer)), (350, Some(PrefixSource::Ram), 0), "redo");
    let stripped = [&longer[..340], &second].concat();
    assert_eq!(parts(read(&mut session, &stripped)), (330, Some(PrefixSource::Ram), 40), "inside a turn");
    let mut another = Session::new(&engine);
    assert_eq!(parts(read(&mut another, &stripped)), (370, Some(PrefixSource::Ram), 0), "another session");
    assert_eq!(parts(read(&mut another, &document[..299])), (0, None, 299), "before every snapshot");
    assert_eq!(
        parts(read(&mut session, &[&stripped[..], &[7]].concat())),
        (370, Some(PrefixSource::Live), 1)
    );
}

/// Prefill that stops anywhere is resumed from there by the next one.
fn every_cut<B: Backend>(open: impl Fn() -> Engine<B>, n: usize, cuts: &[usize]) {
    let document: Vec<u32> = tokens(4, n).into_iter().map(|id| id % 256).collect(); // no special ones: one message
    for &cut in cuts {
        let engine = open();
        let mut session = Session::new(&engine);
        session.prefill(&document[..cut], &mut go).unwrap();
        // Later steps change the session's state, not the snapshot.
        session.prefill(&[&document[..cut], &tokens(5, 20)].concat(), &mut go).unwrap();
        let mut next = Session::new(&engine);
        assert_eq!(parts(read(&mut next, &document)), (cut, Some(PrefixSource::Ram), n - cut));
    }
}

#[test]
fn a_snapshot_of_any_length_equals_an_uninterrupted_reading() {
    for cache in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
        let args = args(cache, StoreOptions::in_memory());
        every_cut(|| Engine::open(&args).unwrap(), 150, &[1, 2, 3, 4, 15, 16, 63, 64, 65, 100, 149]);
        // Attention is materialized from 1,024 tokens on.
        every_cut(|| Engine::open(&args).unwrap(), 1200, &[700, 1023, 1024, 1025, 1100, 1199]);
        every_cut(|| Engine::load(Reference, &args, Box::new(|_| {})).unwrap(), 20, &[2, 17]);
    }
}

#[test]
fn a_stopped_reading_is_kept() {
    let engine = engine(StoreOptions::in_memory());
    let document = tokens(6, 300);
    let mut stop = |done, _| if done >= 128 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let stopped = Session::new(&engine).prefill(&document, &mut stop).unwrap();
    assert!(stopped.stopped && stopped.computed == 128);
    let mut again = Session::new(&engine);
    // A cached prompt has no logits, so its last token is computed again; a longer prompt resumes from its end.
    assert_eq!(parts(read(&mut again, &document[..128])), (0, None, 128));
    assert_eq!(parts(read(&mut again, &document)), (128, Some(PrefixSource::Live), 172));
}

/// Most of many snapshot positions fall inside batches; the others get snapshots, which are restored exactly.
#[test]
fn many_marks_are_thinned() {
    let engine = engine(StoreOptions::in_memory());
    let document: Vec<u32> = tokens(4, 4000).into_iter().map(|id| id % 256).collect();
    let marks: Vec<usize> = (1..=160).map(|i| 25 * i - 3).collect();
    let mut session = Session::new(&engine);
    session.snapshot_at(&marks);
    let mut batches = 0;
    let mut count = |_: usize, _: usize| {
        batches += 1;
        ControlFlow::Continue(())
    };
    session.prefill(&document, &mut count).unwrap();
    assert_eq!(bits(session.logits()), fresh(&engine, &document));
    assert!(batches <= 4000 / 64 + 10, "{batches} batches");
    let other = [&document[..3998], &tokens(5, 9)].concat();
    assert_eq!(
        parts(read(&mut Session::new(&engine), &other)),
        (3997, Some(PrefixSource::Ram), 10),
        "the last mark"
    );
    for (n, at) in [(3500, 3097), (3000, 2072), (2000, 1047), (1000, 22)] {
        let other = [&document[..n], &tokens(6, 5)].concat();
        assert_eq!(
            parts(read(&mut Session::new(&engine), &other)),
            (at, Some(PrefixSource::Ram), n + 5 - at)
        );
    }
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    let args = args(CacheFormat::F16, StoreOptions::in_memory());
    let model = engine(StoreOptions::in_memory());
    let sizes = model.store.sizes();
    let one = sizes.recurrent + sizes.logits + 256 * sizes.row + 100 * (sizes.row + 4);
    let limited = Engine::open(&LoadOptions {
        store: StoreOptions { cache_ram: Some(3 * one), ..StoreOptions::in_memory() },
        ..args
    });
    let limited = limited.unwrap();
    for seed in 0..6 {
        read(&mut Session::new(&limited), &tokens(seed, 100));
        read(&mut Session::new(&limited), &tokens(0, 100));
        assert!(limited.store.ram_bytes() <= 3 * one);
        assert_eq!(limited.store.ram_snapshots(), 3.min(seed as usize + 1));
    }
    let reused = |seed| read(&mut Session::new(&limited), &tokens(seed, 100)).reused;
    assert_eq!([0, 5, 4, 1].map(reused), [100, 100, 100, 0]);
    let none = engine(StoreOptions::nothing());
    read(&mut Session::new(&none), &tokens(0, 100));
    assert_eq!((none.store.ram_snapshots(), none.store.ram_bytes()), (0, 0));
}

#[test]
fn threads_share_a_store() {
    let engine = engine(StoreOptions::in_memory());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let engine = &engine;
            scope.spawn(move || {
                let mut session = Session::new(engine);
                for turn in 0..6 {
                    let shared = tokens(9, 60 + 10 * turn);
                    read(&mut session, &[&shared[..], &tokens(seed, 5)].concat());
                }
            });
        }
    });
    let after = read(&mut Session::new(&engine), &[&tokens(9, 110)[..], &tokens(3, 5)].concat());
    assert_eq!(after.computed, 0);
}
