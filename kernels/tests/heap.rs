//! The heap limit of a thread fails its allocations and no other thread's.

use kernels::heap::{CountingAllocator, limit_thread};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

#[test]
fn a_thread_cannot_allocate_past_its_limit() {
    let limited = std::thread::spawn(|| {
        limit_thread(1 << 20);
        let large = Vec::<u8>::new().try_reserve_exact(2 << 20);
        let mut grown = vec![1_u8; 600 << 10];
        let regrown = grown.try_reserve_exact(600 << 10);
        drop(grown);
        let again = Vec::<u8>::new().try_reserve_exact(900 << 10);
        (large.is_err(), regrown.is_err(), again.is_ok())
    });
    assert_eq!(limited.join().unwrap(), (true, true, true));
    assert!(Vec::<u8>::new().try_reserve_exact(2 << 20).is_ok());
}
