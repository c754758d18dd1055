//! Threads that hold slices, and would have to wait for themselves.

use ioasid::{Access, HwptOptions, Iova, OnMiss, PageResponse};

use crate::*;

#[test]
fn request_pages_with_slices_held_does_not_deadlock() {
    returns(|| {
        let Tenant { context: _context, ioas, endpoint, device } = {
            let tenant = Tenant::detached(&machine(), 1);
            map(&tenant.ioas, 0x1000, PAGE);
            map(&tenant.ioas, 0x2000, PAGE);
            let hwpt = tenant.hwpt(HwptOptions::default().on_miss(OnMiss::Resolve));
            tenant.device.attach(None, &hwpt).unwrap();
            tenant
        };
        ioas.make_fault(range(0x2000, PAGE)).unwrap();
        let (mut port, unmapper) = (endpoint.port(), ioas.clone());
        let slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
        let unmap = std::thread::spawn(move || unmapper.unmap(range(0x1000, PAGE)));
        while ioas.bytes_in(range(0x1000, PAGE)) > 0 {
            std::thread::yield_now();
        }
        let (answered, answer) = mpsc::channel();
        endpoint.request_pages(one_page(0x2000, move |response| answered.send(response).unwrap()));
        assert_eq!(answer.recv(), Ok(PageResponse::Failure));
        drop(slices);
        unmap.join().unwrap().unwrap();
        device.detach(None).unwrap();
    });
}

#[test]
fn dropping_an_access_with_slices_held_does_not_deadlock() {
    returns(|| {
        let tenant = Tenant::of(&machine(), 1);
        map(&tenant.ioas, 0x1000, PAGE);
        let access = tenant.context.access(None).unwrap();
        access.attach(&tenant.ioas).unwrap();
        let (mut port, unmapper) = (tenant.endpoint.port(), tenant.ioas.clone());
        let slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
        let unmap = std::thread::spawn(move || unmapper.unmap(range(0x1000, PAGE)));
        while tenant.ioas.bytes_in(range(0x1000, PAGE)) > 0 {
            std::thread::yield_now();
        }
        drop(access);
        drop(slices);
        unmap.join().unwrap().unwrap();
    });
}

#[test]
fn dropping_a_device_beside_anothers_slices() {
    returns(|| {
        let machine = machine();
        let (one, other) = (Tenant::of(&machine, 1), Tenant::of(&machine, 2));
        map(&one.ioas, 0x1000, PAGE);
        let mut port = one.endpoint.port();
        let slices = port.slices(Iova(0x1000), 8, Access::READ).unwrap();
        drop(other.device);
        drop(slices);
        // Another thread detaches it, soon.
        while other.endpoint.port().read(Iova(0x1000), &mut [0]).unwrap_err().reason != FaultReason::NotAttached {
            std::thread::yield_now();
        }
    });
}

#[test]
fn dropping_a_device_under_its_own_slices_leaves_what_they_lead_to() {
    returns(|| {
        let machine = machine();
        let Tenant { context, ioas, endpoint, device } = Tenant::of(&machine, 1);
        map(&ioas, 0x1000, PAGE);
        let mut port = endpoint.port();
        let slices = port.slices(Iova(0x1000), 8, Access::all()).unwrap();
        drop((device, ioas, context));
        // SAFETY: the slices are held.
        unsafe { slices[0].as_ptr().write(5) };
        drop(slices);
        drop(port);
        while machine.resources() != (0, 0) {
            std::thread::yield_now();
        }
    });
}

use ioasid::FaultReason;
