//! What devices do: DMA, with any PASID.

use std::sync::atomic::Ordering;

use ioasid::{BusAddress, FaultReason, Iova, Pasid};

use crate::memory::{AT, WRITTEN, is_signature, kind, tag};
use crate::{DMA, HIGHEST, Random, Scene};

/// Reads and writes until it is told to stop.
pub fn run(scene: &Scene, device: usize, seed: u64) {
    let mut random = Random(seed);
    let mut ports: Vec<_> = scene.requesters.iter().map(|requester| requester.port()).collect();
    while !scene.stop.load(Ordering::Relaxed) {
        let children = scene.children.all();
        for _ in 0..64 {
            let requester = random.below(ports.len());
            // 0 stands for none.
            let pasid =
                Some(random.below(HIGHEST as usize + 1) as u32).filter(|number| *number > 0).and_then(Pasid::new);
            let process = random.pick(&children).filter(|_| random.below(4) == 0);
            let at = |iova| BusAddress { pasid, iova: Iova(iova) };
            let port = &mut ports[requester];
            if process.is_none() && random.below(4) == 0 {
                // Where this arrives, others look.
                let _ = port.write(at(WRITTEN), &tag(requester, pasid).to_ne_bytes());
                continue;
            }
            let mut word = [0; 8];
            let begun = scene.history.begin(device);
            let result = port.read(at(process.as_ref().map_or(AT, |process| process.address)), &mut word);
            let read = result.is_ok().then(|| u64::from_ne_bytes(word));
            // Where one process has its signature, another may have something else.
            let read = read.filter(|word| process.is_none() || is_signature(*word));
            scene.history.end(device, requester, pasid, begun, read);
            DMA.add(
                match result.map_err(|error| error.reason) {
                    Ok(()) => kind(u64::from_ne_bytes(word)),
                    Err(FaultReason::NotAttached) => "refused: attached to nothing",
                    Err(FaultReason::Parked) => "refused: parked",
                    Err(FaultReason::MemoryGone) => "refused: the process has ended",
                    // A guest's table is unmapped with the rest.
                    Err(FaultReason::NotMapped | FaultReason::GuestTable) => "refused: not mapped",
                    Err(reason) => panic!("requester {requester}, PASID {pasid:?}: refused, as {reason}"),
                },
                1,
            );
        }
    }
}
