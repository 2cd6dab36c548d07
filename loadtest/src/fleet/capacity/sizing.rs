//! The sizing: what a core delivers, what a connection costs, and the number of pods of a fleet.

use crate::fleet::measure::Measurement;
use crate::fleet::outcome::Sizing;

/// The fleet to be sized.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Clients of all pods together.
    pub clients: u32,
    /// Deliveries per second to each client; `None` for as many as were measured.
    pub per_client: Option<f64>,
    /// Share of a pod's capacity that stays free, from 0 to below 1.
    pub headroom: f64,
}

impl Sizing {
    /// The sizing from a load that `pods` pods sustained for `clients` clients, with `per_second` deliveries due: the
    /// number read in the window may be higher after a stall before it. `None` if nothing was delivered.
    #[must_use]
    pub fn of(part: &Measurement, per_second: f64, clients: u32, pods: u32, wanted: &Wanted) -> Option<Self> {
        if part.deliveries == 0 {
            return None;
        }
        let ns = part.usage.as_ref().map(|usage| usage.total_ns() as f64);
        let per_client = wanted.per_client.unwrap_or(per_second / f64::from(clients));
        let per_pod = per_second / f64::from(pods);
        let needed = f64::from(wanted.clients) * per_client / (per_pod * (1.0 - wanted.headroom));
        // Rounding errors must not add a pod.
        let needed = (needed - 1e-9).ceil().max(1.0);
        Some(Self {
            deliveries_per_core: ns.filter(|ns| *ns > 0.0).map(|ns| part.deliveries as f64 * 1e9 / ns),
            user_bytes: part.memory_per_connection,
            kernel_bytes: part.kernel_memory_per_connection,
            per_client,
            per_pod,
            clients: wanted.clients,
            pods: needed as u64,
            clients_per_pod: (f64::from(wanted.clients) / needed).ceil() as u64,
            clients_tried: f64::from(clients) / f64::from(pods),
            headroom: wanted.headroom,
        })
    }

    /// The line printed for it.
    #[must_use]
    pub fn line(&self) -> String {
        let bytes = |bytes: Option<f64>| bytes.map_or("-".to_owned(), grouped);
        let connections = self.user_bytes.map(|user| user + self.kernel_bytes.unwrap_or(0.0));
        let memory = connections.map_or(String::new(), |each| {
            format!(", whose connections take {:.0} MiB", each * self.clients_per_pod as f64 / f64::from(1 << 20))
        });
        format!(
            "sizing: {} deliveries per second and core; a connection takes {} bytes of the pod and {} of the kernel; \
             {} clients at {:.2} deliveries per second each need {} pods like this one, with {:.0} % headroom: \
             {} clients per pod{memory}",
            self.deliveries_per_core.map_or("-".to_owned(), grouped),
            bytes(self.user_bytes),
            bytes(self.kernel_bytes),
            grouped(f64::from(self.clients)),
            self.per_client,
            grouped(self.pods as f64),
            self.headroom * 100.0,
            grouped(self.clients_per_pod as f64),
        )
    }

    /// Remarks about the sizing.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let is_beyond = self.clients_per_pod as f64 > self.clients_tried;
        let beyond = is_beyond.then(|| {
            format!(
                "the sizing has {} clients per pod, but {} were measured: measure as many (--clients)",
                grouped(self.clients_per_pod as f64),
                grouped(self.clients_tried)
            )
        });
        beyond.into_iter().collect()
    }
}

/// Formats a whole number with thousands separators.
#[must_use]
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number <= -0.5 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::report::tests::part;
    use crate::fleet::usage::Usage;

    /// A hundred deliveries per second, at 2 ms of CPU time each.
    fn measured() -> Measurement {
        part(2_000_000)
    }

    const WANTED: Wanted = Wanted { clients: 100_000, per_client: None, headroom: 0.2 };

    #[test]
    fn there_are_enough_pods_for_the_clients_and_the_headroom() {
        let sizing = Sizing::of(&measured(), 100.0, 1_000, 1, &WANTED).unwrap();
        assert_eq!(sizing.deliveries_per_core, Some(500.0), "a hundred per second took a fifth of a core");
        // A pod sustained 1,000 clients, of which the headroom leaves 800.
        assert_eq!((sizing.pods, sizing.clients_per_pod), (125, 800));
        let expected = "sizing: 500 deliveries per second and core; a connection takes 1,024 bytes of the pod and 3,072 \
                        of the kernel; 100,000 clients at 0.10 deliveries per second each need 125 pods like this \
                        one, with 20 % headroom: 800 clients per pod, whose connections take 3 MiB";
        assert_eq!(sizing.line(), expected);
        assert_eq!(sizing.remarks(), Vec::<String>::new());
        let behind = Sizing::of(&measured(), 80.0, 1_000, 1, &WANTED).unwrap();
        assert_eq!((behind.per_client, behind.pods), (0.08, 125), "the load is what was due");
        let two_pods = Sizing::of(&measured(), 100.0, 1_000, 2, &WANTED).unwrap();
        assert_eq!((two_pods.pods, two_pods.clients_per_pod), (250, 400), "each had half of the load");
    }

    #[test]
    fn the_number_of_pods_scales_with_the_rate_of_a_client() {
        let slower = Wanted { per_client: Some(0.01), ..WANTED };
        let sizing = Sizing::of(&measured(), 100.0, 1_000, 1, &slower).unwrap();
        assert_eq!((sizing.pods, sizing.clients_per_pod), (13, 7_693), "12.5 are 13");
        assert_eq!(
            sizing.remarks(),
            ["the sizing has 7,693 clients per pod, but 1,000 were measured: measure as many (--clients)"]
        );
        let few = Wanted { clients: 1, ..WANTED };
        assert_eq!(Sizing::of(&measured(), 100.0, 1_000, 1, &few).unwrap().pods, 1);
    }

    #[test]
    fn figures_that_were_not_measured_are_left_out() {
        let foreign =
            Measurement { usage: None, memory_per_connection: None, kernel_memory_per_connection: None, ..measured() };
        let line = Sizing::of(&foreign, 100.0, 1_000, 1, &WANTED).unwrap().line();
        assert!(
            line.starts_with("sizing: - deliveries per second and core; a connection takes - bytes of the pod and -")
        );
        assert!(line.ends_with("800 clients per pod"), "{line}");
        let idle = Measurement { usage: Some(Usage::default()), ..measured() };
        assert_eq!(Sizing::of(&idle, 100.0, 1_000, 1, &WANTED).unwrap().deliveries_per_core, None);
        assert_eq!(Sizing::of(&Measurement { deliveries: 0, ..measured() }, 100.0, 1_000, 1, &WANTED), None);
    }

    #[test]
    fn thousands_are_separated() {
        let numbers = [0.0, 999.6, 1_000.0, 123_456.0, 1_234_567.0, -4_321.0].map(grouped);
        assert_eq!(numbers, ["0", "1,000", "1,000", "123,456", "1,234,567", "-4,321"]);
    }
}
